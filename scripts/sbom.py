"""Writes the requirements in a hash-locked file to standard output as a CycloneDX bill of
materials.

The bill has no time and no serial number, so the same lock file gives the same bytes.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

PINNED = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)(\[[^\]]*\])?==(?P<version>[^\s;\\]+)")
HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
VERSION = re.compile(r'__version__\s*(?::[^=]+)?=\s*"([^"]+)"')


def components(lock: str) -> list[dict[str, Any]]:
    """Return each requirement with its version and the digests of its files.

    :raises ValueError: if a requirement is not pinned with digests.
    """
    found = []
    for statement in re.sub(r"\\\n", " ", lock).splitlines():
        requirement = statement.strip()
        if not requirement or requirement.startswith("#"):
            continue
        match = PINNED.match(requirement)
        hashes = HASH.findall(requirement)
        if match is None or not hashes:
            raise ValueError(f"not pinned with digests: {requirement[:80]}")
        name = re.sub(r"[-_.]+", "-", match["name"]).lower()
        purl = f"pkg:pypi/{name}@{match['version']}"
        found.append(
            {
                "type": "library",
                "bom-ref": purl,
                "name": name,
                "version": match["version"],
                "purl": purl,
                "externalReferences": [
                    {
                        "type": "distribution",
                        "url": f"https://pypi.org/project/{name}/{match['version']}/",
                        "hashes": [{"alg": "SHA-256", "content": digest} for digest in hashes],
                    }
                ],
            }
        )
    return found


def bill(lock: str, version: str) -> dict[str, Any]:
    """Return the bill of materials of this project."""
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": "rialto",
                "name": "rialto",
                "version": version,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            }
        },
        "components": components(lock),
    }


def main() -> None:
    """Write the bill for the named lock file."""
    text = (Path(__file__).resolve().parents[1] / "service" / "__init__.py").read_text()
    match = VERSION.search(text)
    document = bill(Path(sys.argv[1]).read_text(), match[1] if match else "0")
    json.dump(document, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
