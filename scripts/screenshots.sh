#!/bin/sh
# Saves a picture of each page of the dashboard, wide and of a phone, light and dark; --help lists the
# options. Needs Chromium, which scripts/browser.sh installs.
set -eu
cd "$(dirname "$0")/.."
. scripts/venv.sh
exec .venv/bin/python scripts/screenshots.py "$@"
