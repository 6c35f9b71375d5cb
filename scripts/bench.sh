#!/bin/sh
# Measures the service against the sandbox directly: requests a second, added milliseconds, memory,
# time to listen. Arguments go to bench.py (--help lists them).
set -eu
cd "$(dirname "$0")/.."
. scripts/venv.sh
exec .venv/bin/python scripts/bench.py "$@"
