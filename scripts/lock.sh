#!/bin/sh
# Generates the hash-locked requirements from setup.cfg, for every platform and Python from 3.11.
set -eu
cd "$(dirname "$0")/.."
. scripts/venv.sh
lock() {
    output=$1
    shift
    .venv/bin/uv pip compile setup.cfg "$@" --universal --python-version 3.11 --generate-hashes \
        --no-header --no-emit-index-url --quiet --output-file "$output"
}
lock requirements/serve.txt
# The constraint makes the tested versions the served ones.
lock requirements/development.txt --extra embedded --extra dev --constraint requirements/serve.txt
