# Sourced by the other scripts: makes .venv when it is missing and installs the hash-locked
# requirements when they have changed since. PYTHON names another interpreter than python3. Of several
# scripts that start at once one installs, and the others wait for it.
requirements=requirements/development.txt
lock=.venv.lock
worker_file=.venv.lock.worker
max_wait_s=600

is_made() {
    # installed.txt is there only when everything else is: without it an install was cut short.
    [ -x .venv/bin/python ] && [ -f .venv/installed.txt ]
}

is_installed() {
    is_made && cmp -s "$requirements" .venv/installed.txt
}

is_running() {
    # The second is for processes of other accounts.
    [ -n "$1" ] && { kill -0 "$1" 2>/dev/null || [ -d "/proc/$1" ]; }
}

# Whether the holder of the lock, as HOST:PID, is at work: its shell, or what outlived it when that was
# killed. Of other hosts nobody can tell.
is_at_work() {
    [ "${1%:*}" != "$(uname -n)" ] || is_running "${1##*:}" ||
        is_running "$(cat "$worker_file" 2>/dev/null)"
}

# Takes the lock away from a holder that is gone. One process at a time, which looks again: others may
# have done so, and the lock may be another one's by now.
take_over() {
    ln -s "$$" "$lock.taking" 2>/dev/null || {
        is_running "$(readlink "$lock.taking")" || rm -f "$lock.taking"
        return 0
    }
    [ "$(readlink "$lock")" != "$1" ] || rm -f "$lock" "$worker_file"
    rm -f "$lock.taking"
}

# A symbolic link is made whole or not at all, with its text, on every system.
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
    # Whoever was waited for may have done it.
    if ! is_installed; then
        install_requirements
    fi
    end_install
fi
