#!/bin/sh
# Sends odd requests to every operation of /openapi.json and checks the responses. Without arguments
# this is the long form, which takes many minutes; --help lists the options.
set -eu
cd "$(dirname "$0")/.."
. scripts/venv.sh
exec .venv/bin/python scripts/fuzz.py "$@"
