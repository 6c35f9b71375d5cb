# Sourced by the other scripts: makes .venv when it is missing and installs the hash-locked
# requirements when they have changed since. PYTHON names another interpreter than python3.
requirements=requirements/development.txt
if [ ! -x .venv/bin/python ]; then
    echo "Making .venv ..." >&2
    "${PYTHON:-python3}" -m venv .venv
fi
if ! cmp -s "$requirements" .venv/installed.txt; then
    echo "Installing $requirements ..." >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
        --requirement "$requirements"
    cp "$requirements" .venv/installed.txt
fi
