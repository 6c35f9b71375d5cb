"""What is tracked is source: small texts, and images of the documents."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MAX_BYTES = 500_000
IMAGES = (".png", ".jpg", ".svg", ".webp")


def tracked():
    """The tracked files that are there."""
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT).decode()
    paths = (ROOT / name for name in listed.split("\0") if name)
    return [path for path in paths if path.is_file()]


def is_binary(path):
    """Whether the file is no text in UTF-8."""
    content = path.read_bytes()
    try:
        content.decode()
    except UnicodeDecodeError:
        return True
    return b"\0" in content


def faults_of(paths, root):
    """The paths that do not belong in the repository, with the reason."""
    faults = {}
    for path in paths:
        name = path.relative_to(root).as_posix()
        if path.stat().st_size > MAX_BYTES:
            faults[name] = "too large"
        elif is_binary(path) and not (name.startswith("docs/") and path.suffix in IMAGES):
            faults[name] = "binary"
    return faults


def test_only_source_is_tracked():
    """No tracked file is over 500 kB, and none is binary but images of the documents."""
    assert faults_of(tracked(), ROOT) == {}


def test_large_and_binary_files_are_found(tmp_path):
    """A wheel in the root, a large text and a binary in docs are faults; an image is not."""
    docs = tmp_path / "docs"
    docs.mkdir()
    files = {
        "uv.whl": b"PK\x03\x04\0",
        "list.txt": b"x" * (MAX_BYTES + 1),
        "docs/tool": b"\x7fELF\0",
        "docs/page.png": b"\x89PNG\0",
        "app.py": b"pass\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)

    faults = faults_of([tmp_path / name for name in files], tmp_path)

    assert faults == {"uv.whl": "binary", "list.txt": "too large", "docs/tool": "binary"}
