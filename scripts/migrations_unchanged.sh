#!/bin/sh
# Refuses a merged migration that was edited or deleted: databases that have it would never see the
# change. Each file in migrations/ must be as the commit left it that brought it to main.
set -eu
cd "$(dirname "$0")/.."
if [ ! -e .git ]; then
    echo "migrations: this is no git clone, so there is nothing to compare with" >&2
    exit 0
fi
git rev-parse --git-dir >/dev/null
if [ "$(git rev-parse --is-shallow-repository)" = true ]; then
    echo "migrations: a shallow clone does not know what was merged: git fetch --unshallow" >&2
    exit 1
fi
# On a branch, its own migrations may still change: what counts is main.
main=HEAD
if [ "$(git symbolic-ref --quiet --short HEAD || true)" != main ]; then
    for name in refs/remotes/origin/main refs/heads/main; do
        if git rev-parse --quiet --verify "$name" >/dev/null; then
            main=$name
            break
        fi
    done
fi
if ! git rev-parse --quiet --verify "$main" >/dev/null; then
    exit 0
fi
changed=$(
    git -c core.quotePath=false log --first-parent -m --reverse --no-renames --diff-filter=A \
        --format='commit %H' --name-only "$main" -- migrations/ |
        awk '/^commit / { commit = $2; next } NF && !seen[$0]++ { print commit, $0 }' |
        while read -r commit path; do
            if [ ! -f "$path" ]; then
                what=deleted
            elif [ "$(git rev-parse "$commit:$path")" != "$(git hash-object "$path")" ]; then
                what=changed
            else
                continue
            fi
            echo "  $path was $what; it came with $(git log -1 --format='%h (%s)' "$commit")"
        done
)
if [ -n "$changed" ]; then
    echo "migrations: merged ones must stay as they are:" >&2
    echo "$changed" >&2
    echo "Restore them and write a new migration with the change." >&2
    exit 1
fi
