#!/bin/sh
# Calls every operation of /openapi.json oddly and looks at the answers. Without arguments the long
# form, many minutes; --help tells the others.
set -eu
cd "$(dirname "$0")/.."
. scripts/venv.sh
exec .venv/bin/python scripts/fuzz.py "$@"
