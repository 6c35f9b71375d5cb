#!/bin/sh
# Checks that no attack by one caller slows another caller's calls: one attack after the other, in a
# few minutes. Arguments go to pytest, such as `-k zip`.
set -eu
cd "$(dirname "$0")/.."
. scripts/venv.sh
exec .venv/bin/python -m pytest -n 0 tests/victims.py "$@"
