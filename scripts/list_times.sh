#!/bin/sh
# Measures how long the lists of the API take on the data of fill.sh; --help lists the options.
set -eu
cd "$(dirname "$0")/.."
. scripts/venv.sh
exec .venv/bin/python scripts/list_times.py "$@"
