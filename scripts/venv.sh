# The other scripts source this file. It creates .venv if it is missing, and installs hash-locked
# requirements if they have changed: those of development, or the part of them that the sourcing
# script has set. PYTHON names the interpreter. Of several scripts that start concurrently one
# installs, and the others wait for it.
all_requirements=requirements/development.txt
requirements=${requirements:-$all_requirements}
lock=.venv.lock
worker_file=.venv.lock.worker
max_wait_s=600
pip_output=.venv/pip.log
print_version='import platform, sys; print(platform.python_version()); sys.exit(sys.version_info < (3, 11))'

is_made() {
    # installed.txt is written last: if it is missing, an installation was interrupted.
    [ -x .venv/bin/python ] && [ -f .venv/installed.txt ]
}

# Development's requirements include all others, at the same versions.
is_installed() {
    is_made && { cmp -s "$requirements" .venv/installed.txt ||
        cmp -s "$all_requirements" .venv/installed.txt; }
}

is_running() {
    # /proc has the processes of other accounts, which kill cannot check.
    [ -n "$1" ] && { kill -0 "$1" 2>/dev/null || [ -d "/proc/$1" ]; }
}

# Returns whether the holder of the lock, HOST:PID, is at work: its shell, or an installation that
# outlived the shell. A holder on another host cannot be checked and counts as at work.
is_at_work() {
    [ "${1%:*}" != "$(uname -n)" ] || is_running "${1##*:}" ||
        is_running "$(cat "$worker_file" 2>/dev/null)"
}

# Removes the lock of a holder that is gone. One process at a time does this, and checks the holder
# again, because another process may have removed the lock and taken it.
take_over() {
    ln -s "$$" "$lock.taking" 2>/dev/null || {
        is_running "$(readlink "$lock.taking")" || rm -f "$lock.taking"
        return 0
    }
    [ "$(readlink "$lock")" != "$1" ] || rm -f "$lock" "$worker_file"
    rm -f "$lock.taking"
}

# Every system creates a symbolic link with its text atomically.
begin_install() {
    waited_s=0
    until ln -s "$(uname -n):$$" "$lock" 2>/dev/null; do
        holder=$(readlink "$lock" || true)
        if [ -n "$holder" ] && ! is_at_work "$holder"; then
            take_over "$holder"
            continue
        fi
        if [ -n "$holder" ] && [ "$waited_s" -eq 0 ]; then
            echo "Waiting for another install ($holder) ..." >&2
        fi
        if [ "$waited_s" -ge "$max_wait_s" ] || { [ -z "$holder" ] && [ ! -w . ]; }; then
            echo "Cannot make $(pwd)/$lock. If no install is running, remove it." >&2
            exit 1
        fi
        sleep 1
        waited_s=$((waited_s + 1))
    done
    worker=
    trap 'rm -f "$worker_file" "$lock"' EXIT
    for signal in HUP:129 INT:130 TERM:143; do
        trap "kill \$worker 2>/dev/null; exit ${signal#*:}" "${signal%:*}"
    done
}

end_install() {
    rm -f "$worker_file" "$lock"
    trap - EXIT HUP INT TERM
}

run_step() {
    "$@" &
    worker=$!
    echo "$worker" >"$worker_file"
    wait "$worker"
}

# Shows how far pip is, until it or this script ends. `sleep` must not hold this script's output.
show_progress() {
    total=$(grep -c '^[A-Za-z0-9]' "$1")
    while sleep 3 >/dev/null 2>&1 && is_running $$; do
        if grep -q '^Installing collected' "$pip_output"; then
            echo "  Installing ..."
        else
            done=$(grep -c -e '^Collecting' -e '^Processing' -e '^Ignoring' \
                -e '^Requirement already' "$pip_output")
            echo "  $done of $total"
        fi
    done
}

# Runs pip, with `--python` for that of another environment, on a list of requirements.
run_pip() {
    list=$1
    shift
    run_step "$@" install --disable-pip-version-check --no-compile --require-hashes \
        --requirement "$list"
}

install_with_pip() {
    .venv/bin/python -m pip --version >/dev/null 2>&1 ||
        run_step .venv/bin/python -m ensurepip >/dev/null || return
    : >"$pip_output"
    show_progress "$1" >&2 &
    progress=$!
    status=0
    run_pip "$1" .venv/bin/python -m pip >"$pip_output" || status=$?
    kill "$progress" 2>/dev/null || true
    wait "$progress" 2>/dev/null || true
    return "$status"
}

# Sets uv to the uv of the PATH or of .venv. A smaller set is for a quick start, so pip gets uv for
# it: the pip of the interpreter, or else that of .venv, which takes seconds to make.
find_uv() {
    uv=$(command -v uv || command -v .venv/bin/uv) || {
        [ "$requirements" != "$all_requirements" ] || return
        run_pip requirements/uv.txt "${python:-python3}" -m pip --python .venv/bin/python \
            >/dev/null 2>&1 || install_with_pip requirements/uv.txt
        uv=.venv/bin/uv
    }
}

install_with_uv() {
    find_uv && run_step "$uv" pip install --python .venv/bin/python --require-hashes \
        --requirement "$requirements" >&2
}

install_requirements() {
    if ! is_made; then
        echo "Making .venv ..." >&2
        run_step "$python" -m venv --clear --without-pip .venv
    elif grep -q '^pytest' .venv/installed.txt; then
        # Of development's requirements, some may not go with a newer smaller set.
        requirements=$all_requirements
    fi
    echo "Installing $requirements ..." >&2
    rm -f .venv/installed.txt
    # pip may be set up for a registry that uv does not know.
    install_with_uv || install_with_pip "$requirements"
    cp "$requirements" .venv/installing.txt
    mv .venv/installing.txt .venv/installed.txt
}

# Sets python to PYTHON, or to the newest interpreter that can make .venv.
choose_python() {
    if [ -n "${PYTHON:-}" ]; then
        set -- "$PYTHON"
    else
        set -- python3.14 python3.13 python3.12 python3.11 python3
    fi
    for python; do
        if version=$("$python" -c "$print_version" 2>/dev/null); then
            if command -v uv >/dev/null || "$python" -c 'import ensurepip' 2>/dev/null; then
                return
            fi
            version="$version without ensurepip, which Debian has in python3-venv"
        fi
    done
    echo "Python 3.11 or newer is needed; $python is ${version:-not there}." \
        "Set PYTHON to another interpreter." >&2
    exit 1
}

if ! is_installed; then
    is_made || choose_python
    begin_install
    # The process that held the lock may have installed them.
    if ! is_installed; then
        install_requirements
    fi
    end_install
fi

# The command line of this checkout, as an installed package would have it.
if [ ! -L .venv/bin/rialto ]; then
    ln -s ../../scripts/rialto .venv/bin/rialto 2>/dev/null || true
fi
