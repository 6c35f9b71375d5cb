"""Venice keys: the operator's keys at Venice, with balances, checks and cooldowns. No key is ever
shown."""

from typing import Final
from uuid import UUID

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from service import upstream
from service.accounts import find_organization_id
from service.api import upstream_keys
from service.api.state import KEYRING, VENICE
from service.dashboard.page import Page
from service.errors import ClientError
from service.reports import names
from service.reports.names import Named
from service.upstream import KEY_PROBLEMS, Finding, KeyCooldown, StoredKey

MAX_COOLDOWNS: Final = 20
"""How many cooldowns of a key the page shows."""


class NewKeyForm(msgspec.Struct, kw_only=True):
    """A key to add. Without an organization it serves all that have none of their own."""

    name: str = ""
    key: str = ""
    organization: str | UnsetType = UNSET

    def __repr__(self) -> str:
        return f"<NewKeyForm {self.name}>"


class KeyLine(msgspec.Struct, frozen=True, kw_only=True):
    """A key as the page shows it: what is stored, and its state in this process."""

    stored: StoredKey
    organization_name: str | None
    problem: str | None
    in_flight: int
    cooldowns: list[KeyCooldown]
    more_cooldowns: int

    @property
    def is_disabled(self) -> bool:
        return self.stored.status == "disabled"


async def show(page: Page) -> web.StreamResponse:
    """Every key, oldest first."""
    stored = await upstream.list_stored(page.database)
    keys = page.app[VENICE].keys
    cooldowns = keys.cooldowns()
    ids = {key.organization_id for key in stored if key.organization_id is not None}
    ids |= {
        cooldown.caller_id
        for found in cooldowns.values()
        for cooldown in found[:MAX_COOLDOWNS]
        if cooldown.caller_id is not None
    }
    named = await page.part(names.find, page.database, ids) or {}
    lines = [
        _line(key, list(cooldowns.get(key.id, ())), keys.in_flight[key.id], named) for key in stored
    ]
    return await page.render("venice_keys.html", keys=lines, named=named)


def _line(
    key: StoredKey, cooldowns: list[KeyCooldown], in_flight: int, named: dict[UUID, Named]
) -> KeyLine:
    owner = None if key.organization_id is None else named.get(key.organization_id)
    problem = None
    if key.last_check not in (None, Finding.WELL):
        problem = KEY_PROBLEMS[Finding(key.last_check)]
    return KeyLine(
        stored=key,
        organization_name=None if owner is None else owner.name,
        problem=problem,
        in_flight=in_flight,
        cooldowns=cooldowns[:MAX_COOLDOWNS],
        more_cooldowns=max(0, len(cooldowns) - MAX_COOLDOWNS),
    )


async def add(page: Page) -> web.StreamResponse:
    """Add a key and ask Venice about it. The page shows the result."""
    form = page.form(NewKeyForm)
    organization_id = None
    if form.organization is not UNSET:
        try:
            organization_id = await find_organization_id(page.database, form.organization)
        except ClientError as error:
            error.param = "organization"
            raise
    async with page.change() as conn:
        key_id = await upstream.add(
            conn, page.app[KEYRING], page.viewer.actor, form.name, form.key, organization_id
        )
    return await _checked(page, key_id, "venice_key_added")


async def check(page: Page) -> web.StreamResponse:
    """Ask Venice about a key, at no cost."""
    return await _checked(page, page.path_id, "venice_key_checked")


async def disable(page: Page) -> web.StreamResponse:
    """Take a key out of use; its calls go on to their end."""
    async with page.change() as conn:
        await upstream.disable(conn, page.viewer.actor, page.path_id)
    await upstream_keys.load(page.app)
    return page.redirect("venice_keys", notice="venice_key_disabled")


async def enable(page: Page) -> web.StreamResponse:
    """Take a key back into use, and ask Venice about it."""
    async with page.change() as conn:
        await upstream.enable(conn, page.viewer.actor, page.path_id)
    return await _checked(page, page.path_id, "venice_key_enabled")


async def _checked(page: Page, key_id: UUID, notice: str) -> web.StreamResponse:
    checked = await upstream_keys.check(page.app, page.database, key_id)
    return page.redirect("venice_keys", notice=notice if checked.is_well else f"{notice}_not_well")


FORMS: Final = {
    "add": add,
    "{id}/check": check,
    "{id}/disable": disable,
    "{id}/enable": enable,
}
"""The forms of the page, by the end of their path."""
