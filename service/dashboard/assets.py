"""The stylesheet, the script and the icon. A URL has a digest of the content, so that browsers keep
what they have until it changes."""

import hashlib
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web

from service.api.requests import Request
from service.errors import NotFound

DIRECTORY: Final = Path(__file__).with_name("static")
PATH: Final = "/dashboard/static/{digest}/{name}"
CONTENT_TYPES: Final = {
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
KEPT: Final = "public, max-age=31536000, immutable"
DIGEST_LENGTH: Final = 12


class Asset(msgspec.Struct, frozen=True):
    """A file as it is served."""

    content: bytes
    content_type: str
    digest: str


class Assets:
    """The static files, read once."""

    def __init__(self) -> None:
        self._assets = {path.name: _read(path) for path in sorted(DIRECTORY.iterdir())}

    def url(self, name: str) -> str:
        """The URL of the file.

        :raises KeyError: when there is no such file.
        """
        return PATH.format(digest=self._assets[name].digest, name=name)

    async def show(self, request: Request) -> web.Response:
        """Serve a file. An older version of it is gone, so its URL finds nothing."""
        asset = self._assets.get(request.match_info["name"])
        if asset is None or asset.digest != request.match_info["digest"]:
            raise NotFound("There is no such file.")
        response = web.Response(
            body=asset.content, content_type=asset.content_type, charset="utf-8"
        )
        response.headers["Cache-Control"] = KEPT
        return response


def _read(path: Path) -> Asset:
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:DIGEST_LENGTH]
    return Asset(content, CONTENT_TYPES[path.suffix], digest)
