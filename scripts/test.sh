#!/bin/sh
# Runs all tests on the embedded PostgreSQL, six at a time, because most of them wait. Arguments go to
# pytest: `-n 0` runs one at a time, `-m "not slow"` leaves out those that take seconds, and
# `--hypothesis-profile=thorough` tries five times as many examples.
set -eu
cd "$(dirname "$0")/.."
. scripts/venv.sh
exec .venv/bin/python -m pytest -n 6 --dist worksteal "$@"
