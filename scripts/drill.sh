#!/bin/sh
# Checks that no call is lost and none is charged twice while upstream keys fail. Without arguments
# it makes 10,000 calls with failing keys, and as many with a good one.
set -eu
cd "$(dirname "$0")/.."
. scripts/venv.sh
exec .venv/bin/python scripts/drill.py "$@"
