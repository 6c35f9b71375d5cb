#!/bin/sh
# Like run.sh, but reloads when a file changes (aiohttp-devtools).
set -eu
cd "$(dirname "$0")/.."
. scripts/venv.sh
exec .venv/bin/adev runserver service/app.py --app-factory create_app --port "${PORT:-8080}" "$@"
