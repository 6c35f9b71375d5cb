"""Organizations: the list, with what each used this month, and the form that makes one."""

from typing import Final
from uuid import UUID

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from service import accounts
from service.api.queries import OptionalId, Text, id_of, text_of
from service.api.state import KEYRING
from service.audit import OPERATOR_ORGANIZATION_ID
from service.dashboard import lookups
from service.dashboard.filters import filters_of
from service.dashboard.page import Page
from service.dashboard.spending import start_of_month
from service.errors import ClientError
from service.reports import usage
from service.reports.usage import Filter

PAGE: Final = 100
FIRST_ID: Final = UUID(int=0)


class OrganizationsQuery(msgspec.Struct, kw_only=True):
    """A page of organizations, or the one to go to by its id or name."""

    find: Text | UnsetType = UNSET
    after: OptionalId | UnsetType = UNSET


class NewOrganizationForm(msgspec.Struct, kw_only=True):
    """An organization to make."""

    name: str = ""


async def show(page: Page) -> web.StreamResponse:
    """All organizations, oldest first. An administrator is sent to its own."""
    own = page.viewer.organization_id
    if own is not None:
        return page.redirect("organization", id=own)
    query, fault = page.query(OrganizationsQuery), None
    if (text := text_of(query.find)) is not None:
        try:
            found_id = await lookups.organization_id_of(page, text)
            return page.redirect("organization", id=found_id)
        except ClientError as error:
            fault = error
    after = id_of(query.after) or FIRST_ID
    found = await accounts.list_organizations(page.database, after, PAGE + 1)
    month = start_of_month(page.now)
    wanted = Filter(start=month, end=page.now)
    used = await page.part(usage.report, page.database, None, "organization", wanted)
    filters = filters_of(page, ("find",), cursor="after")
    return await page.render(
        "organizations.html",
        status=200 if fault is None else fault.status,
        fault=fault,
        found=found[:PAGE],
        next_id=found[PAGE - 1].id if len(found) > PAGE else None,
        used=None if used is None else {group.key: group for group in used.groups},
        month=f"{month:%Y-%m-%d}",
        operator_id=OPERATOR_ORGANIZATION_ID,
        **filters,
    )


async def create(page: Page) -> web.StreamResponse:
    """Make an organization, whose page comes next."""
    form = page.form(NewOrganizationForm)
    async with page.change() as conn:
        made = await accounts.create_organization(
            conn, page.app[KEYRING], page.viewer.actor, form.name
        )
    return page.redirect("organization", id=made.id, notice="organization_created")
