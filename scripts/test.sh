#!/bin/sh
# Runs the whole suite on the embedded PostgreSQL. Arguments go to pytest.
set -eu
cd "$(dirname "$0")/.."
. scripts/venv.sh
exec .venv/bin/python -m pytest "$@"
