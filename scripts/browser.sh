#!/bin/sh
# Installs Chromium for the tests of the dashboard, where there is none and Debian's packages can be
# installed. Without it those tests are skipped.
set -eu
for name in chromium chromium-browser google-chrome-stable google-chrome; do
    if command -v "$name" >/dev/null; then
        exit 0
    fi
done
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "There is no Chromium, and it cannot be installed here: tests in a browser are skipped."
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get -q update && apt-get -q install -y --no-install-recommends chromium fonts-dejavu-core; } >/dev/null; then
    echo "Chromium could not be installed: tests in a browser are skipped."
fi
