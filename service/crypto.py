"""Digests of keys, and envelope encryption.

Each organization has a data key of its own; it is stored wrapped by the master key from
``ENCRYPTION_KEY``. Nulling the wrapped key shreds whatever it sealed.
"""

import functools
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

API_KEY_FORM: Final = re.compile(r"rk_[A-Za-z0-9_-]{43}")
API_KEY_PREFIX_LENGTH: Final = 10
NONCE_BYTES: Final = 12
WRAPPED_BYTES: Final = NONCE_BYTES + 32 + 16


def new_api_key() -> str:
    """A caller's key: ``rk_`` and 256 random bits in URL-safe base64."""
    return f"rk_{secrets.token_urlsafe(32)}"


def key_digest(key: str) -> bytes:
    """SHA-256 of a key. The key is random, so neither salt nor stretching adds anything."""
    return hashlib.sha256(key.encode()).digest()


def equal(left: str | bytes, right: str | bytes) -> bool:
    """Compare two secrets in constant time. Text may hold bytes that are not UTF-8."""
    return hmac.compare_digest(_bytes_of(left), _bytes_of(right))


def _bytes_of(value: str | bytes) -> bytes:
    return value.encode(errors="surrogateescape") if isinstance(value, str) else value


@functools.lru_cache(maxsize=4096)
def pseudonym(key: bytes, *parts: str) -> str:
    """A stable stand-in for ``parts`` that says nothing about them: HMAC-SHA256, 32 hex digits.

    Those asked for last are kept: most callers name no end user, or the same few.
    """
    message = "\0".join(parts).encode()
    return hmac.digest(key, message, "sha256")[:16].hex()


def end_user_digest(key: bytes, end_user: str) -> bytes:
    """What the books keep instead of an end user's name: HMAC-SHA256, its first 16 bytes."""
    return hmac.digest(key, end_user.encode(), "sha256")[:16]


def derive(data_key: bytes, purpose: str) -> bytes:
    """A 256-bit key for one purpose, by HKDF-SHA256 (RFC 5869)."""
    return HKDF(SHA256(), length=32, salt=None, info=f"rialto {purpose}".encode()).derive(data_key)


class UnknownMasterKey(Exception):
    """None of the keys in ENCRYPTION_KEY opens what is stored."""


class Keyring:
    """Wraps data keys under the newest master key and opens them with any of the ring.

    A wrapped key is a nonce of 12 bytes and the AES-256-GCM box, bound to its owner's id.
    """

    def __init__(self, master_keys: Sequence[str]) -> None:
        self._ciphers = [AESGCM(derive(key.encode(), "master")) for key in master_keys]

    def new_data_key(self, owner: bytes) -> bytes:
        """A new data key, wrapped."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._ciphers[0].encrypt(nonce, os.urandom(32), owner)

    def seal(self, owner: bytes, secret: bytes) -> bytes:
        """``secret`` under a data key of its own, which stands wrapped before it."""
        wrapped = self.new_data_key(owner)
        nonce = os.urandom(NONCE_BYTES)
        cipher = AESGCM(self.open_data_key(owner, wrapped))
        return wrapped + nonce + cipher.encrypt(nonce, secret, owner)

    def unseal(self, owner: bytes, sealed: bytes) -> bytes:
        """:raises UnknownMasterKey: when no master key of the ring fits."""
        wrapped, rest = sealed[:WRAPPED_BYTES], sealed[WRAPPED_BYTES:]
        cipher = AESGCM(self.open_data_key(owner, wrapped))
        return cipher.decrypt(rest[:NONCE_BYTES], rest[NONCE_BYTES:], owner)

    def open_data_key(self, owner: bytes, wrapped: bytes) -> bytes:
        """:raises UnknownMasterKey: when no master key of the ring fits."""
        for cipher in self._ciphers:
            try:
                return cipher.decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], owner)
            except InvalidTag:
                continue
        raise UnknownMasterKey(
            "the stored data key opens with none of the keys in ENCRYPTION_KEY: add the key that"
            " was in force when it was written to the end of the list"
        )
