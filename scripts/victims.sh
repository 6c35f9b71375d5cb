#!/bin/sh
# Shows that no attack of one caller makes another caller's calls slow: one attack after the other,
# a few minutes. Arguments go to pytest: `-k zip`.
set -eu
cd "$(dirname "$0")/.."
. scripts/venv.sh
exec .venv/bin/python -m pytest -n 0 tests/victims.py "$@"
