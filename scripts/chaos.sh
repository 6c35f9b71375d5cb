#!/bin/sh
# Checks that the ledger stays right through faults under load. Without arguments this is the long
# form, which takes half an hour; --help lists the options.
set -eu
cd "$(dirname "$0")/.."
. scripts/venv.sh
exec .venv/bin/python scripts/chaos.py "$@"
