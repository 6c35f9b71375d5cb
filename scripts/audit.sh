#!/bin/sh
# Looks for known vulnerabilities in the locked requirements, and writes what they are as an SBOM,
# dist/sbom.json or the file given. Exit status 1 when there is a vulnerability. Where the registry
# has no advisories, or cannot be asked, that part is skipped with a notice.
set -eu
cd "$(dirname "$0")/.."
. scripts/venv.sh
sbom=${1:-dist/sbom.json}
mkdir -p "$(dirname "$sbom")"
.venv/bin/python scripts/sbom.py requirements/serve.txt >"$sbom"
echo "$sbom written"
status=0
for lock in requirements/serve.txt requirements/development.txt; do
    # It runs apart: what it needs is not among the locks that it looks at.
    timeout "${AUDIT_TIMEOUT:-120}" .venv/bin/uvx --quiet pip-audit --format json --progress-spinner off \
        --require-hashes --disable-pip --requirement "$lock" 2>/dev/null |
        .venv/bin/python scripts/audited.py "$lock" || status=1
done
exit $status
