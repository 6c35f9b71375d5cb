"""How many tokens a picture can have, by its size where the picture itself states it.

Venice does not state how its models count pictures, so each bound covers all models of its family.
``docs/limits.md`` has the derivation.
"""

import binascii
import re
from typing import Final, NamedTuple

MAX_SCALED_TOKENS: Final = 16_384
"""The most tokens of a picture for a model that scales it down. Qwen's models scale least."""
BASE_TOKENS: Final = 4_096
"""The most that is independent of the size: InternVL has up to 13 tiles of 256 tokens."""
TILE_PIXELS: Final = 256
TILE_TOKENS: Final = 272
"""The most tokens of a begun tile: Pixtral has 256 and one for each row, Gemini 2 has 258."""

OPENAI: Final = "openai-"
"""The prefix of OpenAI's models at Venice. The newer ones do not scale pictures down."""
MAX_PATCHED_TOKENS: Final = 81_920
"""Pictures of more than about 67,000 patches are refused, and a patch has 1.2 tokens there."""
PATCHED_BASE_TOKENS: Final = 2_304
"""More than a picture has for older models, which count tiles: at most 1,445 tokens."""
PATCH_PIXELS: Final = 32
TWO_PATCHES_TOKENS: Final = 5
"""The most tokens of two patches; OpenAI's factors go up to 2.46 tokens a patch."""

GPT_4O_MINI: Final = "gpt-4o-mini"
"""The model with the most tokens for a picture, so that it costs as much as for GPT-4o."""
MINI_BASE_TOKENS: Final = 2_833
MINI_TILE_PIXELS: Final = 512
MINI_TILE_TOKENS: Final = 5_667
MAX_MINI_TILES: Final = 8
"""Pictures are scaled down to 768 by 2,048 pixels."""

HEAD_BYTES: Final = 48 * 1024
"""How much of a picture is searched for its size; a multiple of three, to be decoded alone."""
DATA_URL: Final = re.compile(r"data:image/[\w.+-]{1,64};base64,", re.ASCII)
PNG: Final = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
JPEG: Final = b"\xff\xd8"
FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""The markers of JPEG that begin a frame, which states the size."""


class Size(NamedTuple):
    """The size of a picture in pixels."""

    width: int
    height: int

    def count(self, pixels: int) -> int:
        """Count the squares with sides of this length that cover the picture."""
        return -(-self.width // pixels) * -(-self.height // pixels)


class PictureTokens(NamedTuple):
    """The most tokens of some pictures, for each family of models."""

    scaled: int = 0
    patched: int = 0
    mini: int = 0

    @classmethod
    def of(cls, size: Size | None) -> "PictureTokens":
        """The most tokens of one picture; ``size`` is None if it is not known."""
        if size is None:
            mini_tiles = MAX_MINI_TILES
            scaled, patched = MAX_SCALED_TOKENS, MAX_PATCHED_TOKENS
        else:
            mini_tiles = min(MAX_MINI_TILES, size.count(MINI_TILE_PIXELS))
            scaled = BASE_TOKENS + TILE_TOKENS * size.count(TILE_PIXELS)
            patched = PATCHED_BASE_TOKENS + -(-TWO_PATCHES_TOKENS * size.count(PATCH_PIXELS) // 2)
        return cls(
            min(scaled, MAX_SCALED_TOKENS),
            min(patched, MAX_PATCHED_TOKENS),
            MINI_BASE_TOKENS + MINI_TILE_TOKENS * mini_tiles,
        )

    def plus(self, other: "PictureTokens") -> "PictureTokens":
        """The tokens of both."""
        return PictureTokens(
            self.scaled + other.scaled, self.patched + other.patched, self.mini + other.mini
        )

    def for_model(self, name: str) -> int:
        """The most tokens for the model of this name at Venice."""
        if not name.startswith(OPENAI):
            return self.scaled
        return self.mini if GPT_4O_MINI in name else self.patched


NO_PICTURES: Final = PictureTokens()


def read_size(url: str) -> Size | None:
    """Read the size of a PNG or JPEG from its data URL. None for other pictures, and for any whose
    size two programs could read in two ways."""
    match = DATA_URL.match(url)
    # A program may take what follows the last comma.
    if match is None or url.count(",") != 1:
        return None
    start = match.end()
    try:
        head = binascii.a2b_base64(url[start : start + HEAD_BYTES // 3 * 4], strict_mode=True)
    except ValueError:
        return None
    if head.startswith(PNG):
        return _size(head[16:20], head[20:24])
    return _read_jpeg(head) if head.startswith(JPEG) else None


def _read_jpeg(head: bytes) -> Size | None:
    """Go from segment to segment to the first frame."""
    at = len(JPEG)
    while at + 9 <= len(head) and head[at] == 0xFF:
        marker = head[at + 1]
        if marker in FRAMES:
            return _size(head[at + 7 : at + 9], head[at + 5 : at + 7])
        length = int.from_bytes(head[at + 2 : at + 4])
        if marker < 0xC0 or 0xD0 <= marker <= 0xDA or marker == 0xFF or length < 2:
            # Padding, the picture's own data, or no segment with a length.
            return None
        at += 2 + length
    return None


def _size(width: bytes, height: bytes) -> Size | None:
    size = Size(int.from_bytes(width), int.from_bytes(height))
    # A JPEG may state its height after its data, and 0 before it.
    return size if size.width and size.height else None
