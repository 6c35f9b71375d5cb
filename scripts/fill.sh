#!/bin/sh
# Makes ten million valid ledger entries in 200 organizations, to measure lists, reports and pages
# with. Uses DATABASE_URL, or an embedded PostgreSQL in --directory; --help lists the options.
set -eu
cd "$(dirname "$0")/.."
. scripts/venv.sh
exec .venv/bin/python scripts/fill.py "$@"
