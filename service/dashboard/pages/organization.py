"""One organization: what it uses, its end users, and the forms that rename, suspend, resume and
delete it."""

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import msgspec
from aiohttp import web

from service import accounts, ledger
from service.accounts import Organization
from service.audit import OPERATOR_ORGANIZATION_ID
from service.dashboard import lookups
from service.dashboard.formats import NEAR_SHARE
from service.dashboard.page import Page
from service.dashboard.paths import url
from service.dashboard.spending import cost_over_time, start_of_day, start_of_month
from service.errors import ClientError
from service.ledger import Limit
from service.reports import calls, keys, names, usage
from service.reports.usage import Filter

DAYS: Final = 30
SHOWN: Final = 8
"""Rows of each table of the first page; all others are a link away."""
MAX_LIMITS: Final = 1000
MAX_RUNNING: Final = 1000
FIRST_ID: Final = UUID(int=0)


class NameForm(msgspec.Struct, kw_only=True):
    """Another name."""

    name: str = ""


class ConfirmForm(msgspec.Struct, kw_only=True):
    """The name of what is to change, typed as a confirmation."""

    confirm: str = ""


async def show(page: Page) -> web.StreamResponse:
    """What the organization spends, by day and key, and its limits."""
    organization = await lookups.organization_of(page)
    database, owner = page.database, organization.id
    today, month = start_of_day(page.now), start_of_month(page.now)
    first_day = today - timedelta(days=DAYS - 1)

    async def report(group_by: Any, start: datetime) -> Any:
        wanted = Filter(start=start, end=page.now)
        return await page.part(usage.report, database, owner, group_by, wanted)

    def of_day(start: datetime, end: datetime) -> str:
        return url("requests", organization=owner, from_=start.date(), to=end.date())

    by_day = await report("day", first_day)
    context: dict[str, Any] = {
        "by_day": by_day,
        "chart": None if by_day is None else cost_over_time(by_day, of_day),
        "by_key": await report("key", month),
        "today_used": await report("outcome", today),
        "keys": await page.part(keys.search, database, owner, None, None, None, 1),
        "running": await page.part(calls.in_flight, database, owner, MAX_RUNNING),
    }
    limits = await page.part(ledger.list_limits, database, owner, FIRST_ID, MAX_LIMITS)
    limits = None if limits is None else sorted(limits, key=_share, reverse=True)
    ids = {limit.api_key_id for limit in limits or () if limit.api_key_id is not None}
    return await page.render(
        "organization.html",
        limits=limits,
        near=sum(_share(limit) >= NEAR_SHARE for limit in limits or ()),
        named=(await page.part(names.find, database, ids) if ids else None) or {},
        organization=organization,
        first_day=first_day.date(),
        today=today.date(),
        month=month.date(),
        days=DAYS,
        shown=SHOWN,
        max_running=MAX_RUNNING,
        **context,
    )


def _share(limit: Limit) -> Decimal:
    """How much of a limit is used or held, from 0. That of each end user is counted elsewhere."""
    if limit.scope == "each_end_user" and limit.template_id is None:
        return Decimal(0)
    ceiling = Decimal(limit.ceiling)
    return (Decimal(limit.used) + Decimal(limit.held)) / ceiling if ceiling else Decimal(1)


async def show_settings(page: Page) -> web.StreamResponse:
    """The forms that change the organization itself."""
    organization = await lookups.organization_of(page)
    return await page.render(
        "organization_settings.html",
        organization=organization,
        is_operators_own=organization.id == OPERATOR_ORGANIZATION_ID,
    )


async def rename(page: Page) -> web.StreamResponse:
    """Give the organization another name."""
    organization, form = await lookups.organization_of(page), page.form(NameForm)
    async with page.change() as conn:
        await accounts.rename_organization(conn, page.viewer.actor, organization.id, form.name)
    return _changed(page, organization, "organization_renamed")


async def suspend(page: Page) -> web.StreamResponse:
    """Refuse the organization's calls from now on."""
    organization = await _confirmed(page)
    async with page.change() as conn:
        await accounts.suspend_organization(conn, page.viewer.actor, organization.id)
    return _changed(page, organization, "organization_suspended")


async def resume(page: Page) -> web.StreamResponse:
    """Admit the organization's calls again."""
    organization = await lookups.organization_of(page)
    async with page.change() as conn:
        await accounts.resume_organization(conn, page.viewer.actor, organization.id)
    return _changed(page, organization, "organization_resumed")


async def delete(page: Page) -> web.StreamResponse:
    """End the organization for good."""
    organization = await _confirmed(page)
    async with page.change() as conn:
        await accounts.delete_organization(conn, page.viewer.actor, organization.id)
    return _changed(page, organization, "organization_deleted")


async def _confirmed(page: Page) -> Organization:
    """The organization in the path, whose name was typed.

    :raises ClientError: when another text was.
    """
    organization = await lookups.organization_of(page)
    # A browser's field has no line breaks and a form's text no spaces around it.
    if page.form(ConfirmForm).confirm != organization.name.strip():
        raise ClientError(
            f'Type the name of the organization, "{organization.name}", to confirm.',
            param="confirm",
        )
    return organization


def _changed(page: Page, organization: Organization, notice: str) -> web.StreamResponse:
    return page.redirect("organization_settings", id=organization.id, notice=notice)
