"""Makes docs/settings.md from the declarations in service/settings/settings.py."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "settings.md"

sys.path.insert(0, str(ROOT))

from service.settings.page import markdown  # noqa: E402 - the path comes first

text = markdown()
if "--check" in sys.argv[1:]:
    if not PAGE.exists() or PAGE.read_text() != text:
        sys.exit("docs/settings.md is not current: run scripts/docs.sh")
else:
    PAGE.write_text(text)
