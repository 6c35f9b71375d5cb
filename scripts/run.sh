#!/bin/sh
# Starts the service in development: its own PostgreSQL, migrations, and the sandbox as Venice
# unless VENICE_API_KEY is set. Settings come from the environment and .env.
set -eu
cd "$(dirname "$0")/.."
requirements=requirements/run.txt
. scripts/venv.sh
exec .venv/bin/python -m service serve
