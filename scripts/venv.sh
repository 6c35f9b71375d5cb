# The other scripts source this file. It creates .venv if it is missing, and installs the hash-locked
# requirements if they have changed. PYTHON names an interpreter other than python3. Of several scripts
# that start concurrently one installs, and the others wait for it.
requirements=requirements/development.txt
lock=.venv.lock
worker_file=.venv.lock.worker
max_wait_s=600

is_made() {
    # installed.txt is written last: if it is missing, an installation was interrupted.
    [ -x .venv/bin/python ] && [ -f .venv/installed.txt ]
}

is_installed() {
    is_made && cmp -s "$requirements" .venv/installed.txt
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

install_requirements() {
    if ! is_made; then
        echo "Making .venv ..." >&2
        run_step "$python" -m venv --clear .venv
    fi
    echo "Installing $requirements ..." >&2
    rm -f .venv/installed.txt
    run_step .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
        --requirement "$requirements"
    cp "$requirements" .venv/installing.txt
    mv .venv/installing.txt .venv/installed.txt
}

if ! is_installed; then
    python=${PYTHON:-python3}
    if ! is_made && ! version=$("$python" -c \
        'import platform, sys; print(platform.python_version()); sys.exit(sys.version_info < (3, 11))' \
        2>/dev/null); then
        echo "Python 3.11 or newer is needed; $python is ${version:-not there}." \
            "Set PYTHON to another interpreter." >&2
        exit 1
    fi
    begin_install
    # The process that held the lock may have installed them.
    if ! is_installed; then
        install_requirements
    fi
    end_install
fi
