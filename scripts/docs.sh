#!/bin/sh
# Generates docs/settings.md, .env.example and docs/schema.sql. With --check it fails if one of them
# is not current.
set -eu
cd "$(dirname "$0")/.."
. scripts/venv.sh
.venv/bin/python scripts/settings_md.py "$@"
.venv/bin/python scripts/schema_sql.py "$@"
