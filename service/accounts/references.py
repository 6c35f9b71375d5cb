"""Finds organizations and keys by the texts that people use for them: an id, a name, or the prefix
with which a key begins.

Names need not be unique, so a text that fits several is an error that lists them. An id always
wins, and what is in force wins over what was revoked or deleted.
"""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, Final
from uuid import UUID

import msgspec

from service import crypto
from service.accounts.organizations import is_valid_name
from service.database.database import Database
from service.errors import ClientError, NotFound

MAX_SHOWN: Final = 5
"""The most candidates or suggestions that an error lists."""
MAX_COMPARED: Final = 500
"""The most names that a misspelled one is compared with: the newest."""
MIN_LIKENESS: Final = 0.6

FIND_ORGANIZATIONS: Final = """
    SELECT id
    FROM public.organizations
    WHERE ($3::uuid IS NULL OR id = $3)
      AND (id = $1 OR (name = $2 AND status <> 'deleted'))
    ORDER BY (id = $1) IS TRUE DESC, id
    LIMIT $4
"""
# The alphabet of keys ends before the tilde.
FIND_KEYS: Final = """
    SELECT k.id, k.name, k.prefix, o.name AS organization, k.revoked_at IS NULL AS is_in_force
    FROM public.api_keys k
    JOIN public.organizations o ON o.id = k.organization_id
    WHERE ($4::uuid IS NULL OR k.organization_id = $4)
      AND (
          k.id = $1
          OR k.name = $2
          OR (k.prefix COLLATE "C" >= $3 AND k.prefix COLLATE "C" < $3 || '~')
      )
    ORDER BY (k.id = $1) IS TRUE DESC, k.revoked_at IS NOT NULL, k.id DESC
    LIMIT $5
"""
NEWEST_ORGANIZATIONS: Final = """
    SELECT name
    FROM public.organizations
    WHERE status <> 'deleted'
    ORDER BY id DESC
    LIMIT $1
"""
NEWEST_KEYS: Final = """
    SELECT name
    FROM public.api_keys
    WHERE ($1::uuid IS NULL OR organization_id = $1)
      AND revoked_at IS NULL
    ORDER BY id DESC
    LIMIT $2
"""


def parse_id(text: str) -> UUID | None:
    """Return the id that a text is, or None."""
    try:
        return msgspec.convert(text, UUID)
    except (msgspec.ValidationError, UnicodeEncodeError):
        return None


async def find_organization_id(database: Database, text: str, only: UUID | None = None) -> UUID:
    """Return the id of the organization with this id or exact name.

    With ``only`` no other organization is looked at, and the error suggests none, so that an
    administrator learns nothing about them. A deleted organization is found by its id alone.

    :raises NotFound: when there is none; the message suggests similar names.
    :raises ClientError: when several organizations have the name; the message lists their ids.
    """
    wanted, name = parse_id(text), _searchable(text)
    rows = await database.fetch(FIND_ORGANIZATIONS, wanted, name, only, MAX_SHOWN + 1)
    if len(rows) == 1 or (rows and rows[0]["id"] == wanted):
        return _id_of(rows[0])
    if rows:
        ids = _list(str(row["id"]) for row in rows)
        raise ClientError(f'Several organizations are named "{name}": {ids}. State the id.')
    if wanted is not None or name is None or only is not None:
        raise NotFound("There is no such organization.")
    known = await database.fetch(NEWEST_ORGANIZATIONS, MAX_COMPARED)
    raise NotFound(f'There is no organization "{name}".{_suggest(name, known)}')


async def find_key_id(database: Database, text: str, organization_id: UUID | None = None) -> UUID:
    """Return the id of the key with this id, prefix or exact name.

    A prefix begins with ``rk_`` and may be shorter than the ten characters that lists show. With
    ``organization_id`` only keys of that organization are looked at and suggested.

    :raises NotFound: when there is none; the message suggests similar names.
    :raises ClientError: when several keys fit; the message lists their prefixes. Also for a whole
        key, which is a secret.
    """
    if crypto.API_KEY_FORM.fullmatch(text):
        raise ClientError(
            "This is a whole key, which is a secret. State its first"
            f" {crypto.API_KEY_PREFIX_LENGTH} characters, its name or its id."
        )
    wanted, name = parse_id(text), _searchable(text)
    prefix = name if name is not None and name.startswith("rk_") else None
    rows = await database.fetch(FIND_KEYS, wanted, name, prefix, organization_id, MAX_SHOWN + 1)
    if rows and rows[0]["id"] == wanted:
        return _id_of(rows[0])
    rows = [row for row in rows if row["is_in_force"]] or rows
    if len(rows) == 1:
        return _id_of(rows[0])
    if rows:
        keys = _list(f"{row['prefix']} ({row['name']} of {row['organization']})" for row in rows)
        raise ClientError(f'Several keys fit "{name}": {keys}. State a prefix or an id.')
    if wanted is not None or name is None:
        raise NotFound("There is no such API key.")
    known = await database.fetch(NEWEST_KEYS, organization_id, MAX_COMPARED)
    raise NotFound(f'There is no API key "{name}".{_suggest(name, known)}')


def _searchable(text: str) -> str | None:
    """Return the text if it can be a name or a prefix, or None: the database refuses some texts."""
    return text if is_valid_name(text) else None


def _id_of(row: Any) -> UUID:
    found: UUID = row["id"]
    return found


def _list(texts: Iterable[str]) -> str:
    """Join the candidates; the database was asked for one more than is shown."""
    shown = list(texts)
    more = ", …" if len(shown) > MAX_SHOWN else ""
    return ", ".join(shown[:MAX_SHOWN]) + more


def _suggest(text: str, known: Sequence[Any]) -> str:
    """Return a sentence with the known names that are similar to the text, or nothing."""
    names: dict[str, str] = {}
    for row in known:
        names.setdefault(row["name"].casefold(), row["name"])
    similar = difflib.get_close_matches(text.casefold(), names, MAX_SHOWN, MIN_LIKENESS)
    if not similar:
        return ""
    *others, last = (f'"{names[one]}"' for one in similar)
    return f" Did you mean {', '.join(others) + ' or ' if others else ''}{last}?"
