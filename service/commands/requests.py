"""``rialto requests``."""

import asyncio
import contextlib
import shlex
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import click
import msgspec

from service.commands.limits import format_amount, format_limit
from service.commands.output import (
    Column,
    CommandGroup,
    Facts,
    Result,
    Rows,
    is_for_people,
)
from service.commands.parameters import of_organization, optional_key, optional_organization
from service.commands.work import with_database
from service.crypto import Keyring
from service.database.database import Database
from service.derived import RefusalFilter, RefusalLine, list_refusals
from service.reports import entries, story
from service.reports.entries import EntryFilter, EntryLine
from service.reports.story import Story
from service.settings import may_color
from service.telemetry.console import Renderer

LOOK_EVERY_S: Final = 1.0
OVERLAP: Final = timedelta(seconds=10)
"""How far each look goes back: transactions are committed a little later than they are dated."""
MAX_ROWS: Final = 500
MAX_SEEN: Final = 10_000


def _key_of(one: Story) -> str | None:
    return f"{one.key_name} ({one.key_prefix})" if one.key_name else one.key_prefix


STORY: Final = (
    Column("state", lambda one: one.state.replace("_", " "), "state"),
    Column("why", "message", none=""),
    Column("code", "code", none=""),
    Column("status", "status", none=""),
    Column("outcome", "outcome", "state", ""),
    Column("cost", lambda one: one.total_cost_usd or one.cost_usd, "usd", ""),
    Column("cost source", "cost_source", none=""),
    Column("bound", "bound_usd", "usd", ""),
    Column("input tokens", "input_tokens", "count", ""),
    Column("cached", "cached_input_tokens", "count", ""),
    Column("output tokens", "output_tokens", "count", ""),
    Column("bound in tokens", "bound_tokens", "count", ""),
    Column("organization", "organization_name", none=""),
    Column("key", _key_of, none=""),
    Column("end user", "end_user", "id", ""),
    Column("asked for", "requested_model", none=""),
    Column("model", "model", none=""),
    Column("endpoint", lambda one: one.endpoint or one.route, none=""),
    Column("stream", "is_stream", none=""),
    Column("tags", "tags", none=""),
    Column("at", "at", "time"),
    Column("first byte", "first_byte_ms", "milliseconds", ""),
    Column("took", "duration_ms", "milliseconds", ""),
    Column("settled", "counted_at", "time", ""),
    Column("Venice key", "upstream_key_name", none=""),
    Column("Venice's id", "upstream_request_id", "id", ""),
    Column("request", "request_id", "id"),
    Column("id", "id", "id"),
)
LIMITS: Final = (
    Column("limit", format_limit),
    Column("binds", lambda limit: limit.scope.replace("_", " ")),
    Column("used", lambda limit: format_amount(limit.unit, limit.used), "count"),
    Column("held", lambda limit: format_amount(limit.unit, limit.held), "count"),
    Column(
        "needed",
        lambda limit: limit.needed and format_amount(limit.unit, limit.needed),
        "count",
        "",
    ),
    Column("resets", "resets_at", "time", ""),
)
ATTEMPTS: Final = (
    Column("#", "number", "count"),
    Column("result", "code", "state"),
    Column("status", "status", "count", ""),
    Column("took", "duration_ms", "milliseconds"),
    Column("model", "model"),
    Column("Venice key", "upstream_key_name"),
    Column("at", "started_at", "time"),
)
AMENDMENTS: Final = (
    Column("kind", "kind"),
    Column("cost", "cost_usd", "usd", "unknown"),
    Column("note", "note", none=""),
    Column("settled", "counted_at", "time"),
)
OTHERS: Final = (
    Column("state", "state", "state"),
    Column("at", "at", "time"),
    Column("id", "id", "id"),
)


@click.group(cls=CommandGroup)
def requests() -> None:
    """Look at requests, by id or as they come."""


@requests.command("show")
@click.argument("request_id")
def show_request(request_id: str) -> None:
    """Show the whole story of a call or refusal, by the id of its request or ledger entry."""

    async def work(database: Database, _: Keyring) -> Result:
        return _shown(await story.find(database, request_id, None))

    with_database(work)


@requests.command("tail")
@of_organization(required=False, help="Follow this organization. Default: all.")
@click.option("--key", metavar="NAME", help="Only this key, by name, prefix or id.")
@click.option("--model", help="Only this model.")
def follow_requests(organization: str | None, key: str | None, model: str | None) -> None:
    """Follow calls and refusals as they are recorded, until Ctrl-C."""

    async def work(database: Database, _: Keyring) -> Result:
        organization_id = await optional_organization(database, organization)
        key_id = await optional_key(database, key, organization_id)
        show_line = _line_for_people() if is_for_people() else _line_of_json
        async for line in _follow(database, organization_id, key_id, model):
            click.echo(show_line(line))
        return None

    with contextlib.suppress(KeyboardInterrupt):
        with_database(work)


Line = EntryLine | RefusalLine


async def _follow(
    database: Database, organization_id: UUID | None, key_id: UUID | None, model: str | None
) -> AsyncIterator[Line]:
    """Yield what is recorded from now on, a look after the other."""
    since = await database.now()
    if is_for_people():
        click.echo("Requests from now on. Ctrl-C stops.", err=True)
    seen: dict[UUID, None] = {}
    while True:
        now = await database.now()
        start = max(since, now - OVERLAP)
        scope: dict[str, Any] = {
            "organization_id": organization_id,
            "api_key_id": key_id,
            "model": model,
            "start": start,
        }
        settled = await entries.search(database, EntryFilter(**scope, kind="call"), None, MAX_ROWS)
        refused = await list_refusals(database, RefusalFilter(**scope), None, MAX_ROWS)
        found: list[Line] = [*settled.entries, *refused.refusals]
        for line in sorted(found, key=_time_of):
            if line.id not in seen:
                seen[line.id] = None
                yield line
        while len(seen) > MAX_SEEN:
            del seen[next(iter(seen))]
        await asyncio.sleep(LOOK_EVERY_S)


def _time_of(line: Line) -> datetime:
    if isinstance(line, RefusalLine):
        return line.refused_at
    return line.counted_at or line.created_at


def _line_of_json(line: Line) -> str:
    return msgspec.json.encode(line).decode()


def _line_for_people() -> Any:
    """Return the function that renders a line as the log of the service does."""
    renderer = Renderer(colors=may_color())

    def render(line: Any) -> str:
        is_refused = isinstance(line, RefusalLine)
        facts = {
            "event": "request",
            "timestamp": f"{_time_of(line).astimezone():%H:%M:%S}",
            "method": line.method if is_refused else "POST",
            "route": line.route if is_refused else f"/v1{line.endpoint}",
            "status": line.status or 0,
            "code": line.code if is_refused else None,
            "outcome": None if is_refused else line.outcome,
            "duration_ms": None if is_refused else line.duration_ms,
            "key_prefix": line.key_prefix,
            "model": line.model,
            "cost_usd": None if is_refused else line.cost_usd,
        }
        return f"{renderer(None, '', facts)}  {line.request_id or ''}"

    return render


def _shown(found: Story) -> Facts:
    title = "Limits now" if found.limits_as_of == "now" else "The limit that refused it"
    parts = [
        (title, found.limits, LIMITS),
        ("Attempts at Venice", found.attempts, ATTEMPTS),
        ("Corrections and credits", found.amendments, AMENDMENTS),
        ("Others with this id", found.others, OTHERS),
    ]
    return Facts(
        item=found,
        columns=STORY,
        parts=[(name, Rows(rows=rows, columns=columns)) for name, rows, columns in parts if rows],
        next_steps=_next_steps(found),
    )


def _next_steps(found: Story) -> Sequence[str]:
    if found.state == "refused" and found.limits and found.organization_name:
        return [f"rialto limits list --organization {shlex.quote(found.organization_name)}"]
    return [] if found.key_prefix is None else [f"rialto keys show {found.key_prefix}"]
