#!/bin/sh
# Runs the whole suite on the embedded PostgreSQL, four tests at a time, since most of them wait.
# Arguments go to pytest: `-n 0` for one at a time.
set -eu
cd "$(dirname "$0")/.."
. scripts/venv.sh
exec .venv/bin/python -m pytest -n 4 --dist worksteal "$@"
