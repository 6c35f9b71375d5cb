#!/bin/sh
# Checks that a test fails for each removed guard that protects money or tenants. Takes minutes;
# --help lists the options.
set -eu
cd "$(dirname "$0")/.."
. scripts/venv.sh
exec .venv/bin/python scripts/mutate.py "$@"
