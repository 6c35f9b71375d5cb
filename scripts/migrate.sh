#!/bin/sh
# Applies pending migrations and the functions of this release to DATABASE_URL and checks the tables,
# before a deployment. Waits up to 90 s for the database; exits non-zero on failure, which stops the
# deployment. In a fresh clone it installs what it needs first, as scripts/run.sh does.
set -eu
cd "$(dirname "$0")/.."
python=python
if [ -x .venv/bin/python ]; then
    python=.venv/bin/python
elif [ -e scripts/venv.sh ]; then
    requirements=requirements/run.txt
    . scripts/venv.sh
    python=.venv/bin/python
fi
exec "$python" -m service migrate
