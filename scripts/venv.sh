# Sourced by the other scripts: makes .venv when it is missing and installs the hash-locked
# requirements when they have changed since. PYTHON names another interpreter than python3.
requirements=requirements/development.txt
# installed.txt is there only when everything else is: without it an install was cut short.
if [ ! -x .venv/bin/python ] || [ ! -f .venv/installed.txt ]; then
    python=${PYTHON:-python3}
    if ! version=$("$python" -c \
        'import platform, sys; print(platform.python_version()); sys.exit(sys.version_info < (3, 11))' \
        2>/dev/null); then
        echo "Python 3.11 or newer is needed; $python is ${version:-not there}." \
            "Set PYTHON to another interpreter." >&2
        exit 1
    fi
    echo "Making .venv ..." >&2
    "$python" -m venv --clear .venv
fi
if ! cmp -s "$requirements" .venv/installed.txt; then
    echo "Installing $requirements ..." >&2
    rm -f .venv/installed.txt
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
        --requirement "$requirements"
    cp "$requirements" .venv/installing.txt
    mv .venv/installing.txt .venv/installed.txt
fi
