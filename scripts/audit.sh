#!/bin/sh
# Looks for known vulnerabilities in the locked requirements, and writes the requirements as an SBOM
# to dist/sbom.json or to the given file. Exits with 1 if there is a vulnerability. A part for which
# the registry has no advisories or cannot be reached is skipped with a notice.
set -eu
cd "$(dirname "$0")/.."
. scripts/venv.sh
sbom=${1:-dist/sbom.json}
mkdir -p "$(dirname "$sbom")"
.venv/bin/python scripts/sbom.py requirements/serve.txt >"$sbom"
echo "$sbom written"
status=0
for lock in requirements/serve.txt requirements/development.txt; do
    # pip-audit runs in its own environment, because its requirements are not in the audited locks.
    timeout "${AUDIT_TIMEOUT:-120}" .venv/bin/uvx --quiet pip-audit --format json --progress-spinner off \
        --require-hashes --disable-pip --requirement "$lock" 2>/dev/null |
        .venv/bin/python scripts/audited.py "$lock" || status=1
done
exit $status
