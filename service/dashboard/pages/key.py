"""One key: what it may do, what it used, its limits, and the forms that change, rotate and revoke
it."""

from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from service import accounts, ledger
from service.accounts import DEFAULT_OVERLAP_S, MAX_OVERLAP_S, ApiKey, KeyChange
from service.api.auth import must_be_granted
from service.api.key_rules import must_be_changeable
from service.dashboard import lookups
from service.dashboard.filters import input_time
from service.dashboard.forms import UtcMoment
from service.dashboard.page import Page
from service.dashboard.pages.organization_keys import entries_of
from service.dashboard.pages.own_key import OVERLAPS
from service.dashboard.paths import url
from service.dashboard.spending import cost_over_time, start_of_day
from service.errors import ClientError
from service.reports import usage
from service.reports.usage import Filter

DAYS: Final = 30
SHOWN: Final = 10


class KeyForm(msgspec.Struct, kw_only=True):
    """What the key is to be. Lists are separated by commas, spaces or lines; an empty one allows
    all. Without a time the key does not expire."""

    name: str = ""
    expires_at: UtcMoment | UnsetType = UNSET
    models: str = ""
    allowed_endpoints: str = ""
    ip_allow_list: str = ""


class RotationForm(msgspec.Struct, kw_only=True):
    """How long the old secret goes on working."""

    overlap_seconds: Annotated[int, msgspec.Meta(ge=0, le=MAX_OVERLAP_S)] = DEFAULT_OVERLAP_S


class RevocationForm(msgspec.Struct, kw_only=True):
    """The confirmation."""

    is_confirmed: Literal["true"] | UnsetType = UNSET


async def show(page: Page) -> web.StreamResponse:
    """The key, its limits, and what it used in the last 30 days."""
    key = await lookups.key_of(page)
    database, owner = page.database, key.organization_id
    start = start_of_day(page.now) - timedelta(days=DAYS - 1)
    wanted = Filter(start=start, end=page.now, api_key_id=key.id)

    def of_day(start: datetime, end: datetime) -> str:
        return url("requests", key=key.id, from_=start.date(), to=end.date())

    by_day = await page.part(usage.report, database, owner, "day", wanted)
    context: dict[str, Any] = {
        "organization": await accounts.find_organization(database, owner),
        "by_day": by_day,
        "chart": None if by_day is None else cost_over_time(by_day, of_day),
        "by_model": await page.part(usage.report, database, owner, "model", wanted),
        "limits": await page.part(ledger.list_binding, database, owner, key.id, b""),
    }
    return await page.render(
        "key.html",
        key=key,
        key_state=state_of(key, page.now),
        input_time=input_time,
        start=start.date(),
        days=DAYS,
        shown=SHOWN,
        overlaps=OVERLAPS,
        **context,
    )


def state_of(key: ApiKey, now: datetime) -> str:
    """``in force``, ``revoked`` or ``expired``."""
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= now else "in force"


async def change(page: Page) -> web.StreamResponse:
    """Give the key the name, the expiry and the lists of the form, as far as they differ from its
    own."""
    key, form = await lookups.key_of(page), page.form(KeyForm)
    expires_at = None if form.expires_at is UNSET else form.expires_at.at
    if expires_at is not None and key.expires_at is not None:
        # A browser's field for times may have no fractions of a second.
        shown = key.expires_at.replace(microsecond=key.expires_at.microsecond // 1000 * 1000)
        expires_at = key.expires_at if expires_at == shown else expires_at
    stated = {
        "name": form.name,
        "expires_at": expires_at,
        "models": entries_of(form.models),
        "allowed_endpoints": entries_of(form.allowed_endpoints),
        "ip_allow_list": entries_of(form.ip_allow_list),
    }
    differing: dict[str, Any] = {
        name: value for name, value in stated.items() if value != getattr(key, name)
    }
    if differing:
        wanted = KeyChange(**differing)
        must_be_changeable(page.app, page.viewer.caller, key, wanted)
        async with page.change() as conn:
            await accounts.change_key(conn, page.viewer.actor, key, wanted)
    return page.redirect("key", id=key.id, notice="key_changed")


async def rotate(page: Page) -> web.StreamResponse:
    """Give the key a new secret, and show it this once."""
    key, form = await lookups.key_of(page), page.form(RotationForm)
    viewer = page.viewer
    must_be_granted(viewer.caller, key)
    own_digest = viewer.session.key_digest if viewer.api_key_id == key.id else None
    async with page.change() as conn:
        secret = await accounts.rotate_key(
            conn, viewer.actor, key, form.overlap_seconds, own_digest=own_digest
        )
        # Read here: a page that failed after the commit would lose the secret.
        rotated = await accounts.find_key(conn, key.id)
    return await page.render(
        "key_secret.html",
        key=rotated,
        secret=secret,
        organization=None,
        overlap_s=form.overlap_seconds,
    )


async def revoke(page: Page) -> web.StreamResponse:
    """Put the key out of force for good."""
    key = await lookups.key_of(page)
    if page.form(RevocationForm).is_confirmed is UNSET:
        raise ClientError(
            "Confirm that the key is to be revoked: it cannot be undone.", param="is_confirmed"
        )
    async with page.change() as conn:
        await accounts.revoke_key(conn, page.viewer.actor, key)
    return page.redirect("key", id=key.id, notice="key_revoked")
