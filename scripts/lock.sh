#!/bin/sh
# Generates the hash-locked requirements, for every platform and Python from 3.11: of the service, of
# scripts/run.sh, of development and of scripts/fuzz_http.sh from setup.cfg, of the tested clients
# from clients.in and package.json, and of uv for scripts/venv.sh.
set -eu
cd "$(dirname "$0")/.."
. scripts/venv.sh
lock() {
    output=$1
    shift
    .venv/bin/uv pip compile "$@" --universal --python-version 3.11 --generate-hashes \
        --no-header --no-emit-index-url --quiet --output-file "$output"
}
lock requirements/serve.txt setup.cfg
# The constraints make the tested versions the served ones, and let development's include the others.
lock requirements/development.txt setup.cfg --extra embedded --extra dev --constraint requirements/serve.txt
lock requirements/run.txt setup.cfg --extra embedded --constraint requirements/development.txt
echo uv | lock requirements/uv.txt - --constraint requirements/development.txt
lock requirements/fuzz.txt setup.cfg --extra fuzz --constraint requirements/serve.txt
lock requirements/clients.txt requirements/clients.in
# The clients from npm are locked by the Node.js of the environment that the tests install.
.venv/bin/python tests/clients/installed.py lock
