"""Key digests and envelope encryption.

Each organization has its own data key, stored wrapped under the master key from ``ENCRYPTION_KEY``.
Deleting the wrapped key makes everything it encrypted unreadable.
"""

import base64
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
    """Create a caller's key: ``rk_`` and 256 random bits in URL-safe base64."""
    return f"rk_{secrets.token_urlsafe(32)}"


def key_digest(key: str) -> bytes:
    """Return the SHA-256 of a key. Keys are random, so salting or stretching would add nothing."""
    return hashlib.sha256(key.encode()).digest()


def equal(left: str | bytes, right: str | bytes) -> bool:
    """Compare two secrets in constant time. Strings may hold bytes that are not UTF-8."""
    return hmac.compare_digest(_bytes_of(left), _bytes_of(right))


def _bytes_of(value: str | bytes) -> bytes:
    return value.encode(errors="surrogateescape") if isinstance(value, str) else value


@functools.lru_cache(maxsize=4096)
def pseudonym(key: bytes, *parts: str) -> str:
    """Return a stable pseudonym that reveals nothing about ``parts``: HMAC-SHA256, 32 hex digits.

    Recent results are cached, because most callers name no end user, or the same few.
    """
    message = "\0".join(parts).encode()
    return hmac.digest(key, message, "sha256")[:16].hex()


def end_user_digest(key: bytes, end_user: str) -> bytes:
    """Return the digest stored instead of an end user's name: the first 16 bytes of HMAC-SHA256."""
    return hmac.digest(key, end_user.encode(), "sha256")[:16]


def derive(data_key: bytes, purpose: str) -> bytes:
    """Derive a 256-bit key for one purpose with HKDF-SHA256 (RFC 5869)."""
    return HKDF(SHA256(), length=32, salt=None, info=f"rialto {purpose}".encode()).derive(data_key)


class UnknownMasterKey(Exception):
    """No key in ENCRYPTION_KEY decrypts the stored data."""


class Keyring:
    """Wraps data keys under the newest master key and decrypts them with any key of the ring.

    A wrapped key is a 12-byte nonce and the AES-256-GCM ciphertext, bound to its owner's id.
    """

    def __init__(self, master_keys: Sequence[str]) -> None:
        self._ciphers = [AESGCM(derive(key.encode(), "master")) for key in master_keys]

    def new_data_key(self, owner: bytes) -> bytes:
        """Create a data key and return it wrapped."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._ciphers[0].encrypt(nonce, os.urandom(32), owner)

    def seal(self, owner: bytes, secret: bytes) -> bytes:
        """Encrypt ``secret`` under a new data key, and return the wrapped key followed by the
        result."""
        wrapped = self.new_data_key(owner)
        nonce = os.urandom(NONCE_BYTES)
        cipher = AESGCM(self.open_data_key(owner, wrapped))
        return wrapped + nonce + cipher.encrypt(nonce, secret, owner)

    def unseal(self, owner: bytes, sealed: bytes) -> bytes:
        """Decrypt a sealed secret.

        :raises UnknownMasterKey: when no master key of the ring fits.
        """
        wrapped, box = sealed[:WRAPPED_BYTES], sealed[WRAPPED_BYTES:]
        cipher = AESGCM(self.open_data_key(owner, wrapped))
        return cipher.decrypt(box[:NONCE_BYTES], box[NONCE_BYTES:], owner)

    def open_data_key(self, owner: bytes, wrapped: bytes) -> bytes:
        """Decrypt a wrapped data key.

        :raises UnknownMasterKey: when no master key of the ring fits.
        """
        for cipher in self._ciphers:
            try:
                return cipher.decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], owner)
            except InvalidTag:
                continue
        raise UnknownMasterKey(
            "none of the keys in ENCRYPTION_KEY decrypts the stored data key: append the key that"
            " was in use when it was stored to the list"
        )


class Sealer:
    """Seals small values that leave the service and come back, such as the cookie of a session.

    Each purpose has keys of its own, one derived from each master key. The newest seals; a value
    that an older one sealed still opens.
    """

    def __init__(self, master_keys: Sequence[str], purpose: str) -> None:
        self._purpose = purpose.encode()
        self._ciphers = [AESGCM(derive(key.encode(), purpose)) for key in master_keys]

    def seal(self, content: bytes) -> str:
        """Encrypt ``content``; the result is URL-safe text."""
        nonce = os.urandom(NONCE_BYTES)
        sealed = nonce + self._ciphers[0].encrypt(nonce, content, self._purpose)
        return base64.urlsafe_b64encode(sealed).decode()

    def unseal(self, text: str) -> bytes | None:
        """Decrypt what ``seal`` returned; None for any other text."""
        try:
            sealed = base64.b64decode(text, altchars=b"-_", validate=True)
        except ValueError:
            return None
        if len(sealed) <= NONCE_BYTES:
            return None
        for cipher in self._ciphers:
            try:
                return cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], self._purpose)
            except InvalidTag:
                continue
        return None
