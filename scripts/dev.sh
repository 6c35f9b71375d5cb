#!/bin/sh
# Serves on 127.0.0.1 and restarts when a file changes. Arguments go to aiohttp-devtools.
set -eu
cd "$(dirname "$0")/.."
. scripts/venv.sh
exec .venv/bin/python scripts/dev.py runserver service/app.py --app-factory create_app \
    --port "${PORT:-8080}" --no-livereload "$@"
