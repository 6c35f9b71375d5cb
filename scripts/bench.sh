#!/bin/sh
# Measures requests per second, latencies, CPU time and memory of Rialto, other gateways, a bare
# pass-through and the upstream alone. Arguments go to scripts/bench (--help lists them).
set -eu
cd "$(dirname "$0")/.."
. scripts/venv.sh
exec .venv/bin/python -m scripts.bench "$@"
