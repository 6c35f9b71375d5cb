"""The limits of an organization: what is used, held and left of each, and the form that
sets one."""

import re
from typing import Final
from uuid import UUID

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from service import accounts, ledger
from service.api.queries import OptionalId, id_of
from service.dashboard import lookups
from service.dashboard.filters import filters_of
from service.dashboard.page import Page
from service.errors import ClientError
from service.ledger import NewLimit, Unit
from service.ledger.limits import Period
from service.reports import names

PAGE: Final = 100
FIRST_ID: Final = UUID(int=0)
MAX_END_USER: Final = 128
MODEL_NAME: Final = re.compile(r"[!-~]{1,256}", re.ASCII)
GROUPED: Final = re.compile(r"[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?")
COUNT: Final = re.compile(r"[0-9]{1,19}")
UNITS: Final = (
    ("usd", "US dollars"),
    ("requests", "requests"),
    ("tokens", "tokens"),
    ("concurrency", "calls at a time"),
)
PERIODS: Final = (
    ("month", "a month"),
    ("day", "a day"),
    ("hour", "an hour"),
    ("minute", "a minute"),
    ("lifetime", "in all"),
)


class LimitsQuery(msgspec.Struct, kw_only=True):
    """A page of limits."""

    after: OptionalId | UnsetType = UNSET


class NewLimitForm(msgspec.Struct, kw_only=True):
    """A limit to set. ``key`` is an id, a prefix or a name; without it the limit is of the whole
    organization. The period of calls at a time is ignored."""

    ceiling: str = ""
    unit: Unit = "usd"
    period: Period = "month"
    key: str | UnsetType = UNSET
    end_user: str | UnsetType = UNSET
    is_for_each: bool = False
    model: str | UnsetType = UNSET


async def show(page: Page) -> web.StreamResponse:
    """The limits, oldest first."""
    organization, query = await lookups.organization_of(page), page.query(LimitsQuery)
    after = id_of(query.after) or FIRST_ID
    found = await page.part(ledger.list_limits, page.database, organization.id, after, PAGE + 1)
    ids = {limit.api_key_id for limit in found or () if limit.api_key_id is not None}
    return await page.render(
        "organization_limits.html",
        organization=organization,
        found=None if found is None else found[:PAGE],
        next_id=found[PAGE - 1].id if found and len(found) > PAGE else None,
        named=(await page.part(names.find, page.database, ids) if ids else None) or {},
        units=UNITS,
        periods=PERIODS,
        **filters_of(page, (), cursor="after"),
    )


async def create(page: Page) -> web.StreamResponse:
    """Set a limit, in force on the next call."""
    organization, form = await lookups.organization_of(page), page.form(NewLimitForm)
    owner, end_user = organization.id, None
    if form.ceiling == "":
        raise ClientError("ceiling: state how much may be used.", param="ceiling")
    key = None if form.key is UNSET else form.key
    new = NewLimit(
        unit=form.unit,
        ceiling=amount_of(form.unit, form.ceiling),
        period=None if form.unit == "concurrency" else form.period,
        api_key_id=await lookups.key_id_of(page, key, owner),
        end_user=None if form.end_user is UNSET else form.end_user,
        each_end_user=form.is_for_each,
        model=None if form.model is UNSET else form.model,
    )
    _must_be_valid(new)
    if new.end_user is not None:
        end_user = await lookups.end_user_of(page, new.end_user, owner)
    async with page.change() as conn:
        await accounts.must_be_kept(conn, owner)
        await ledger.create_limit(conn, page.viewer.actor, owner, new, end_user)
        await accounts.announce(conn, owner)
    return page.redirect("organization_limits", id=owner, notice="limit_created")


def _must_be_valid(new: NewLimit) -> None:
    """The rules that the API's body has by its type.

    :raises ClientError: naming the field that breaks its rule.
    """
    if new.end_user is not None and len(new.end_user) > MAX_END_USER:
        raise ClientError(f"end_user: must be at most {MAX_END_USER} characters.", param="end_user")
    if new.model is not None and not MODEL_NAME.fullmatch(new.model):
        raise ClientError(
            "model: must be 1 to 256 printable ASCII characters without spaces.", param="model"
        )


def amount_of(unit: Unit, text: str) -> str | int:
    """The amount of a limit in the form that the API takes: a decimal string of dollars, or a whole
    number. Separators of thousands and a dollar sign are for people; a comma anywhere else stays,
    and is refused, since it may be that of a decimal fraction."""
    plain = text.strip().removeprefix("$")
    if GROUPED.fullmatch(plain):
        plain = plain.replace(",", "")
    if unit != "usd" and COUNT.fullmatch(plain):
        return int(plain)
    return plain
