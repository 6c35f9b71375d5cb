"""Reports the result of pip-audit, JSON on standard input, for the named lock file."""

import json
import sys


def report(lock: str, text: str) -> int:
    """Print the vulnerabilities; return the exit status."""
    try:
        found = json.loads(text)["dependencies"]
    except (ValueError, KeyError, TypeError):
        print(f"{lock}: skipped, because pip-audit or the registry could not be reached")
        return 0
    skipped = [one["name"] for one in found if "skip_reason" in one]
    vulnerable = [one for one in found if one.get("vulns")]
    for one in vulnerable:
        for vulnerability in one["vulns"]:
            fixed = ", ".join(vulnerability.get("fix_versions", [])) or "no version"
            print(
                f"{lock}: {one['name']} {one['version']}: {vulnerability['id']}; fixed in {fixed}"
            )
    if skipped:
        print(f"{lock}: {len(skipped)} of {len(found)} skipped: the registry has no advisories")
    if len(skipped) < len(found):
        audited = len(found) - len(skipped)
        print(f"{lock}: {len(vulnerable)} of {audited} requirements are vulnerable")
    return 1 if vulnerable else 0


if __name__ == "__main__":
    sys.exit(report(sys.argv[1], sys.stdin.read()))
