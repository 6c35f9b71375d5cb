#!/bin/sh
# Runs the whole suite on the embedded PostgreSQL, six tests at a time, since most of them wait.
# Arguments go to pytest: `-n 0` for one at a time, `-m "not slow"` without those that take seconds,
# `--hypothesis-profile=thorough` for five times as many examples.
set -eu
cd "$(dirname "$0")/.."
. scripts/venv.sh
exec .venv/bin/python -m pytest -n 6 --dist worksteal "$@"
