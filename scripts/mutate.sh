#!/bin/sh
# Shows that the tests notice when a guard is taken out that money or tenants depend on; minutes.
# --help tells the options.
set -eu
cd "$(dirname "$0")/.."
. scripts/venv.sh
exec .venv/bin/python scripts/mutate.py "$@"
