"""Makes docs/settings.md and .env.example from the declarations in service/settings/settings.py."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

sys.path.insert(0, str(ROOT))

from service.settings.page import dotenv, markdown  # noqa: E402 - the path comes first

for name, text in (("docs/settings.md", markdown()), (".env.example", dotenv())):
    path = ROOT / name
    if "--check" not in sys.argv[1:]:
        path.write_text(text)
    elif not path.exists() or path.read_text() != text:
        sys.exit(f"{name} is not current: run scripts/docs.sh")
