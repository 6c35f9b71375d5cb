"""Audit: who changed what, with the proof that no event was altered, dropped or slipped in."""

import asyncio
from typing import Any, Final
from uuid import UUID

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from service import audit
from service.accounts import find_organization, find_organization_id
from service.api.queries import Text, text_of
from service.dashboard.page import Page
from service.errors import ClientError
from service.reports import events
from service.reports.events import EventFilter

PAGE: Final = 50
PROOF_TIMEOUT_S: Final = 6.0
"""How long a page goes through a chain. ``rialto audit`` has no such bound."""
MAX_TEXT: Final = 300
ACTIONS: Final = (
    ("", "Anything"),
    ("api_key.", "Keys"),
    ("limit.", "Limits"),
    ("limit.alert", "Alerts of limits"),
    ("organization.", "Organizations"),
    ("upstream_key.", "Venice keys"),
    ("model_alias.", "Aliases"),
    ("model.", "Models at Venice"),
    ("ledger", "The ledger"),
)


class EventsQuery(msgspec.Struct, kw_only=True):
    """The events to show. ``proof`` goes through the whole chain of the organization."""

    organization: Text | UnsetType = UNSET
    actor: Text | UnsetType = UNSET
    action: Text | UnsetType = UNSET
    target: Text | UnsetType = UNSET
    before: Text | UnsetType = UNSET
    proof: Text | UnsetType = UNSET


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """The result of going through a whole chain. ``break_at`` is the number of the first event that
    is not in its place; ``is_done`` is false where there was no time for all of it."""

    is_done: bool
    break_at: int | None = None


async def show(page: Page) -> web.StreamResponse:
    """The events that fit the filters, newest first."""
    query = page.query(EventsQuery)
    organization_id, fault = await _organization(page, text_of(query.organization))
    actor, target = text_of(query.actor), text_of(query.target)
    if actor is not None:
        actor = await events.find_actor(page.database, actor, organization_id)
    if target is not None:
        target = await events.find_target(page.database, target, organization_id)
    wanted = EventFilter(
        has_operators=page.viewer.is_operator,
        organization_id=organization_id,
        actor=actor,
        action=text_of(query.action),
        target=target,
    )
    filters = {
        name: text_of(getattr(query, name)) or ""
        for name in ("organization", "actor", "action", "target")
    }
    organization = proof = found = None
    if fault is None:
        found = await page.part(events.search, page.database, wanted, text_of(query.before), PAGE)
        if organization_id is not None:
            organization = await find_organization(page.database, organization_id)
            if query.proof is not UNSET:
                proof = await _prove(page, organization_id)
    return await page.render(
        "audit.html",
        status=404 if fault is not None else 200,
        query=query,
        fault=fault,
        found=found,
        organization=organization,
        proof=proof,
        actions=ACTIONS,
        filters=filters,
        is_filtered=any(filters.values()),
        pairs=pairs,
    )


def pairs(detail: Any) -> list[tuple[str, str]]:
    """The facts of an event for reading: a name and a text each. What is not stated is left
    out."""
    facts = detail if isinstance(detail, dict) else {"": detail}
    return [
        (name.replace("_", " "), _text(value))
        for name, value in facts.items()
        if value is not None and value is not False
    ]


def _text(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = ", ".join(value)
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"


async def _organization(page: Page, text: str | None) -> tuple[UUID | None, ClientError | None]:
    """The organization whose events are shown, or why the text names none. An administrator sees
    its own."""
    own = page.viewer.organization_id
    if own is not None or text is None:
        return own, None
    try:
        return await find_organization_id(page.database, text), None
    except ClientError as error:
        return None, error


async def _prove(page: Page, organization_id: UUID) -> Proof:
    try:
        async with asyncio.timeout(PROOF_TIMEOUT_S):
            break_at = await audit.first_break(page.database, organization_id)
    except TimeoutError:
        return Proof(is_done=False)
    return Proof(is_done=True, break_at=break_at)
