"""One limit: what is used, held and left of it, and the forms that change, raise and delete it."""

import re
from typing import Final, Literal

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from service import accounts, ledger
from service.dashboard import lookups
from service.dashboard.forms import UtcMoment
from service.dashboard.page import Page
from service.dashboard.pages.organization_limits import amount_of
from service.errors import ClientError
from service.ledger import Limit, LimitChange
from service.reports import names

MAX_PERCENTS: Final = 10


class CeilingForm(msgspec.Struct, kw_only=True):
    """Another ceiling. For money also the percentages of it at which an event is recorded."""

    ceiling: str = ""
    alert_percents: str | UnsetType = UNSET


class RaiseForm(msgspec.Struct, kw_only=True):
    """A higher ceiling until a time."""

    raised_to: str = ""
    raised_until: UtcMoment | UnsetType = UNSET


class DeletionForm(msgspec.Struct, kw_only=True):
    """The confirmation."""

    is_confirmed: Literal["true"] | UnsetType = UNSET


async def show(page: Page) -> web.StreamResponse:
    """The limit as it is now."""
    limit = await lookups.limit_of(page)
    ids = {limit.organization_id, *([limit.api_key_id] if limit.api_key_id else [])}
    return await page.render(
        "limit.html",
        limit=limit,
        organization=await accounts.find_organization(page.database, limit.organization_id),
        named=await page.part(names.find, page.database, ids) or {},
        may_loosen=page.viewer.is_operator or limit.set_by != "operator",
    )


async def change(page: Page) -> web.StreamResponse:
    """Set another ceiling, in force on the next call."""
    limit, form = await lookups.limit_of(page), page.form(CeilingForm)
    if form.ceiling == "":
        raise ClientError("ceiling: state how much may be used.", param="ceiling")
    percents = form.alert_percents
    change = LimitChange(
        ceiling=amount_of(limit.unit, form.ceiling),
        alert_percents=UNSET if percents is UNSET else _percents(percents),
    )
    return await _change(page, limit, change, "limit_changed")


async def raise_until(page: Page) -> web.StreamResponse:
    """Raise the ceiling until a time."""
    limit, form = await lookups.limit_of(page), page.form(RaiseForm)
    if form.raised_to == "":
        raise ClientError("raised_to: state the higher ceiling.", param="raised_to")
    if form.raised_until is UNSET:
        raise ClientError("raised_until: state a time in the future.", param="raised_until")
    change = LimitChange(
        raised_to=amount_of(limit.unit, form.raised_to), raised_until=form.raised_until.at
    )
    return await _change(page, limit, change, "limit_raised")


async def end_raise(page: Page) -> web.StreamResponse:
    """End the raise at once."""
    limit = await lookups.limit_of(page)
    change = LimitChange(raised_to=None, raised_until=None)
    return await _change(page, limit, change, "limit_raise_ended")


async def delete(page: Page) -> web.StreamResponse:
    """Delete the limit; calls are admitted without it from now on."""
    limit = await lookups.limit_of(page)
    if page.form(DeletionForm).is_confirmed is UNSET:
        raise ClientError("Confirm that the limit is to be deleted.", param="is_confirmed")
    async with page.change() as conn:
        await ledger.delete_limit(conn, page.viewer.actor, limit)
        await accounts.announce(conn, limit.organization_id)
    return page.redirect("organization_limits", id=limit.organization_id, notice="limit_deleted")


async def _change(page: Page, limit: Limit, change: LimitChange, notice: str) -> web.StreamResponse:
    async with page.change() as conn:
        await ledger.change_limit(conn, page.viewer.actor, limit, change)
    return page.redirect("limit", id=limit.id, notice=notice)


def _percents(text: str) -> list[int]:
    """The percentages of a text, separated by commas or spaces.

    :raises ClientError: when one is no whole number from 1 to 100, or there are too many.
    """
    texts = text.replace(",", " ").replace("%", " ").split()
    numbers = [int(one) for one in texts if re.fullmatch("[0-9]{1,3}", one)]
    is_fit = len(numbers) == len(texts) <= MAX_PERCENTS
    if not is_fit or not all(1 <= number <= 100 for number in numbers):
        raise ClientError(
            f"alert_percents: must be at most {MAX_PERCENTS} whole numbers from 1 to 100.",
            param="alert_percents",
        )
    return numbers
