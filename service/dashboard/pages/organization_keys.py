"""The keys of an organization: the list, and the form that makes one."""

from typing import Final

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from service import accounts
from service.accounts import NewKey, Organization, Role
from service.api.key_rules import must_be_makeable
from service.api.queries import OptionalId, Text, id_of, text_of
from service.audit import OPERATOR_ORGANIZATION_ID
from service.dashboard import lookups
from service.dashboard.filters import filters_of, input_time
from service.dashboard.forms import UtcMoment
from service.dashboard.page import Page
from service.reports import keys

PAGE: Final = 100
ROLES: Final = (
    ("inference", "inference: makes calls"),
    ("admin", "admin: administers this organization"),
)
OPERATOR_ROLES: Final = (("operator", "operator: administers all organizations"),)


class KeysQuery(msgspec.Struct, kw_only=True):
    """A page of keys, optionally those whose name has ``q`` in it or that begin with it."""

    q: Text | UnsetType = UNSET
    after: OptionalId | UnsetType = UNSET


class NewKeyForm(msgspec.Struct, kw_only=True):
    """A key to make. Lists are separated by commas, spaces or lines; an empty one allows all."""

    name: str = ""
    role: Role = "inference"
    expires_at: UtcMoment | UnsetType = UNSET
    models: str = ""
    allowed_endpoints: str = ""
    ip_allow_list: str = ""


async def show(page: Page) -> web.StreamResponse:
    """The keys that fit the search, oldest first."""
    organization, query = await lookups.organization_of(page), page.query(KeysQuery)
    text = text_of(query.q)
    prefix = text if text is not None and text.startswith("rk_") else None
    found = await page.part(
        keys.search,
        page.database,
        organization.id,
        prefix,
        None if prefix else text,
        id_of(query.after),
        PAGE + 1,
    )
    return await page.render(
        "organization_keys.html",
        organization=organization,
        found=None if found is None else found[:PAGE],
        next_id=found[PAGE - 1].id if found and len(found) > PAGE else None,
        roles=_roles(organization),
        input_time=input_time,
        **filters_of(page, ("q",), cursor="after"),
    )


async def create(page: Page) -> web.StreamResponse:
    """Make a key, and show it this once."""
    organization, form = await lookups.organization_of(page), page.form(NewKeyForm)
    viewer = page.viewer
    new = NewKey(
        name=form.name,
        role=form.role,
        expires_at=None if form.expires_at is UNSET else form.expires_at.at,
        models=entries_of(form.models),
        allowed_endpoints=entries_of(form.allowed_endpoints),
        ip_allow_list=entries_of(form.ip_allow_list),
    )
    must_be_makeable(page.app, viewer.caller, new)
    async with page.change() as conn:
        key, secret = await accounts.create_key(conn, viewer.actor, organization.id, new)
    return await page.render(
        "key_secret.html",
        key=key,
        secret=secret,
        organization=organization,
        overlap_s=None,
    )


def entries_of(text: str) -> list[str] | None:
    """The entries of a list that is separated by commas, spaces or lines; None for an empty one."""
    return text.replace(",", " ").split() or None


def _roles(organization: Organization) -> tuple[tuple[str, str], ...]:
    """The roles that a key of the organization may have."""
    return OPERATOR_ROLES if organization.id == OPERATOR_ORGANIZATION_ID else ROLES
