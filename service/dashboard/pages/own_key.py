"""The holder's key itself: what it may do, a new secret, and how clients use it."""

from typing import Annotated, Final

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from service import accounts
from service.accounts import DEFAULT_OVERLAP_S, MAX_OVERLAP_S, ApiKey
from service.dashboard.page import Page
from service.dashboard.pages.own import own_key_id

OVERLAPS: Final = (
    ("86400", "for a day"),
    ("604800", "for a week"),
    ("3600", "for an hour"),
    ("0", "not at all: every client must have the new one now"),
)
"""How long the old secret goes on working, in seconds."""


class RotationForm(msgspec.Struct, kw_only=True):
    """How long the old secret goes on working."""

    overlap_seconds: Annotated[int, msgspec.Meta(ge=0, le=MAX_OVERLAP_S)] | UnsetType = UNSET


async def show(page: Page) -> web.StreamResponse:
    """What the key may do, and the form that rotates it."""
    return await _render(page, await accounts.find_key(page.database, own_key_id(page)), None)


async def rotate(page: Page) -> web.StreamResponse:
    """Give the key a new secret, which is shown this once."""
    form = page.form(RotationForm)
    overlap_s = DEFAULT_OVERLAP_S if form.overlap_seconds is UNSET else form.overlap_seconds
    viewer, key_id = page.viewer, own_key_id(page)
    key = await accounts.find_key(page.database, key_id)
    async with page.change() as conn:
        secret = await accounts.rotate_key(
            conn, viewer.actor, key, overlap_s, own_digest=viewer.session.key_digest
        )
        # Read here: a page that failed after the commit would lose the secret.
        rotated = await accounts.find_key(conn, key_id)
    return await _render(page, rotated, secret)


async def _render(page: Page, key: ApiKey, secret: str | None) -> web.StreamResponse:
    return await page.render("own_key.html", key=key, secret=secret, overlaps=OVERLAPS)
