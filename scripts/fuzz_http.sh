#!/bin/sh
# Fuzzes the HTTP client with responses that coverage guides (atheris), in an environment of its own,
# .fuzz. Runs until it is stopped; arguments go to libFuzzer, as -max_total_time=600. Linux on x86-64
# only: elsewhere tests/http/test_any_bytes.py plays to the same target what hypothesis finds.
set -eu
cd "$(dirname "$0")/.."
requirements=requirements/fuzz.txt
if ! cmp -s "$requirements" .fuzz/installed.txt; then
    "${PYTHON:-python3}" -m venv --clear .fuzz
    .fuzz/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
        --requirement "$requirements"
    cp "$requirements" .fuzz/installed.txt
fi
exec .fuzz/bin/python scripts/fuzz_http.py "$@"
