"""The blocks of docs/clients.md, for a service of the tests."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "clients.md"
URL = "https://rialto.example.com"
KEY = "rk_…"


def block(heading, language, caller):
    """Return the block below a heading, with the caller's address and key in it."""
    section = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
    (text,) = (one for one in section if one.startswith(f"{heading}\n"))
    found = re.search(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert found, f"{heading} has no block of {language}"
    return found[1].replace(URL, caller.service.url).replace(KEY, caller.key)
