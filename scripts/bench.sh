#!/bin/sh
# Measures Rialto beside other gateways, a bare pass-through and nothing at all: requests a second,
# latencies, CPU time, memory. Arguments go to scripts/bench (--help lists them).
set -eu
cd "$(dirname "$0")/.."
. scripts/venv.sh
exec .venv/bin/python -m scripts.bench "$@"
