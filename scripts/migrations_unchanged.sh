#!/bin/sh
# Refuses a merged migration that was edited or deleted: databases that have it would never see the
# change. Each migration must be as the commit left it that brought it to main. Functions, in
# migrations/functions/, may change, since the migrator applies the new text; but those that the
# newest release calls stay, with their signatures, since it serves while the next one is rolled out.
set -eu
cd "$(dirname "$0")/.."
# The first migration of the baseline. Those that were merged before it are forgotten: a database that
# has them is refused at start.
BASELINE=migrations/0001_organizations.sql
if [ ! -e .git ]; then
    echo "migrations: this is no git clone, so there is nothing to compare with" >&2
    exit 0
fi
git rev-parse --git-dir >/dev/null
if [ "$(git rev-parse --is-shallow-repository)" = true ]; then
    echo "migrations: a shallow clone does not know what was merged: git fetch --unshallow" >&2
    exit 1
fi
# A branch is compared with the commit of main that it began at: its own migrations may still change,
# and it lacks those that main has got since.
merged=HEAD
if [ "$(git symbolic-ref --quiet --short HEAD || true)" != main ]; then
    for name in refs/remotes/origin/main refs/heads/main; do
        if git rev-parse --quiet --verify "$name" >/dev/null; then
            merged=$(git merge-base HEAD "$name")
            break
        fi
    done
fi
if ! git rev-parse --quiet --verify "$merged" >/dev/null; then
    exit 0
fi
added() {
    git -c core.quotePath=false log --first-parent -m --reverse --no-renames --diff-filter=A \
        --format='commit %H' --name-only "$@"
}
since=
if [ -e "$BASELINE" ] || git rev-parse --quiet --verify "$merged:$BASELINE" >/dev/null; then
    baseline=$(added "$merged" -- "$BASELINE" | awk '/^commit / { print $2; exit }')
    if [ -z "$baseline" ]; then
        # The branch that brings the baseline.
        exit 0
    fi
    if git rev-parse --quiet --verify "$baseline^" >/dev/null; then
        since=^$baseline^
    fi
fi
changed=$(
    added "$merged" $since -- migrations/ ':(exclude)migrations/functions/' |
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
signature() {
    awk '/^CREATE OR REPLACE/ { on = 1 } on { print } /LANGUAGE/ { exit }' |
        sed 's/LANGUAGE.*//' | tr -s ' \n' ' '
}
release=$(git describe --tags --abbrev=0 --match 'v[0-9]*' 2>/dev/null || true)
if [ -z "$release" ]; then
    exit 0
fi
changed=$(
    git -c core.quotePath=false ls-tree --name-only "$release" migrations/functions/ |
        while read -r path; do
            name=public.$(basename "$path" .sql)
            if [ ! -f "$path" ]; then
                # The release may have kept it for the one before.
                if git grep -qwF "$name" "$release" -- service migrations ":(exclude)$path"; then
                    echo "  $path was deleted"
                fi
            elif [ "$(git show "$release:$path" | signature)" != "$(signature <"$path")" ]; then
                echo "  $path has another signature"
            fi
        done
)
if [ -n "$changed" ]; then
    echo "migrations: processes of $release call its functions while the next release starts:" >&2
    echo "$changed" >&2
    echo "Restore them, and give a new signature a new name, such as credit_v2." >&2
    exit 1
fi
