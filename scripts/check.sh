#!/bin/sh
# Checks everything that does not need the running service: format, lint, types, the import rule
# (a test), unchanged migrations, and generated documents.
set -eu
cd "$(dirname "$0")/.."
. scripts/venv.sh
echo "ruff format" && .venv/bin/ruff format --check .
echo "ruff check" && .venv/bin/ruff check .
echo "mypy" && .venv/bin/mypy
echo "import rule" && .venv/bin/python -m pytest -q tests/unit/test_architecture.py
echo "migrations" && sh scripts/migrations_unchanged.sh
echo "documents" && sh scripts/docs.sh --check
