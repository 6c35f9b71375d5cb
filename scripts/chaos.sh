#!/bin/sh
# Shows that the books stay right whatever dies under load. Without arguments the long form, many
# minutes; --help tells the others.
set -eu
cd "$(dirname "$0")/.."
. scripts/venv.sh
exec .venv/bin/python scripts/chaos.py "$@"
