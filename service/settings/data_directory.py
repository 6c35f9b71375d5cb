"""The directory where development keeps its secrets. Production keeps no files."""

import os
import re
import secrets
from pathlib import Path
from typing import Final

from service.errors import SettingsError

OPERATOR_KEY_FILE: Final = "operator_key"
ENCRYPTION_KEY_FILE: Final = "encryption_key"
SECRET_LENGTH: Final = 32
SECRET_TEXT: Final = re.compile("[!-~]*")
"""What a header can carry."""


def mistakes(directory: Path) -> list[str]:
    """What keeps the directory from being made or written, found before anything is made."""
    for path in (directory, *directory.absolute().parents):
        if path.exists():
            if not path.is_dir():
                return [f"DATA_DIRECTORY: {path} is not a directory"]
            if not os.access(path, os.W_OK | os.X_OK):
                return [f"DATA_DIRECTORY: {path} cannot be written by this account"]
            break
    return []


def has_database(directory: Path) -> bool:
    """Whether development has made its database in the directory."""
    return (directory / "postgres" / "PG_VERSION").exists()


def kept_secret(path: Path) -> str:
    """The secret in the file, made once.

    :raises SettingsError: when the file cannot be used, or holds no sound secret.
    """
    try:
        if not path.exists():
            write_secret(path, secrets.token_urlsafe(32))
        secret = path.read_text(errors="replace").strip()
    except OSError as error:
        raise SettingsError([f"DATA_DIRECTORY: {error.filename}: {error.strerror}"]) from error
    if len(secret) < SECRET_LENGTH or not SECRET_TEXT.fullmatch(secret):
        rule = f"it must hold a key of at least {SECRET_LENGTH} printable ASCII characters"
        raise SettingsError([f"DATA_DIRECTORY: {path} is damaged: {rule}. Restore it."])
    return secret


def write_secret(path: Path, secret: str) -> None:
    """Write a file that its owner alone can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret)
