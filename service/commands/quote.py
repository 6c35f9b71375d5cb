"""``rialto quote``."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any, BinaryIO, Final

import click
import msgspec

from service import ledger
from service.accounts import Callers, find_key, find_key_id
from service.api.inference import quotable, quote_answer
from service.commands.catalogue import read_catalog
from service.commands.limits import columns as limit_columns
from service.commands.output import Column, Command, Facts, Result, Rows
from service.commands.parameters import WholeNumber, of_organization, optional_organization
from service.commands.work import read_command_settings, with_database
from service.crypto import Keyring
from service.database.database import Database
from service.database.lanes import Lanes
from service.derived import Recorder
from service.errors import ClientError
from service.gateway import FreeRequests, Gateway, Inbound, parse
from service.ids import uuid7
from service.settings import Settings
from service.upstream import ENVIRONMENT_KEY_ID, UpstreamKey, UpstreamKeys, open_venice

MAX_OUTPUT_TOKENS: Final = 2**31
COLUMNS: Final = (
    Column("would pass", "would_pass", "state"),
    Column("costs at most", "max_cost_usd", "usd", "unknown"),
    Column("model", "model"),
    Column("endpoint", "endpoint"),
    Column("tokens at most", "max_tokens", "count"),
    Column("output at most", "max_output_tokens", "count", ""),
    Column("refusal", lambda answer: answer.refusal and answer.refusal.message, none=""),
    Column("code", lambda answer: answer.refusal and answer.refusal.code, none=""),
)


@click.command("quote", cls=Command)
@click.option("--key", required=True, metavar="NAME", help="The key that would make the call.")
@of_organization(required=False, help="Look for the name of the key in this organization only.")
@click.option("--model", help="Quote a chat completion of this model.")
@click.option("--max-tokens", type=WholeNumber(1, MAX_OUTPUT_TOKENS), help="The most output.")
@click.option(
    "--body",
    type=click.File("rb"),
    help="Quote the call with this body, a file of JSON or - for standard input.",
)
@click.option(
    "--path",
    metavar="PATH",
    help="The path of the call with --body, such as images/generations. Default: chat/completions.",
)
@click.argument("prompt", required=False)
def quote(
    key: str,
    organization: str | None,
    model: str | None,
    max_tokens: int | None,
    body: BinaryIO | None,
    path: str | None,
    prompt: str | None,
) -> None:
    """Compute what a call could cost, without making it.

    Give a body, or a model and a PROMPT for a chat completion.
    """
    if (body is None) == (model is None):
        raise click.UsageError("Give --model with a prompt, or --body.")
    content = _chat(model, max_tokens, prompt) if body is None else body.read()
    settings = read_command_settings()

    async def work(database: Database, keyring: Keyring) -> Result:
        organization_id = await optional_organization(database, organization)
        key_id = await find_key_id(database, key, organization_id)
        callers = Callers(Lanes(database), keyring, settings.key_cache_s)
        caller = await callers.of_key(key_id)
        endpoint, names = quotable(path)
        inbound = Inbound(
            content=content,
            request_id=uuid7().hex,
            headers={},
            path=endpoint.path.format(**names),
            settings=caller.settings,
        )
        asked = await parse(endpoint, inbound)
        if asked.is_priced_by_venice and settings.venice_api_key is None:
            raise ClientError("Only Venice prices this path: set VENICE_API_KEY.")
        async with _gateway(settings, database) as gateway:
            answer = quote_answer(await gateway.quote(caller, asked))
        found = await find_key(database, key_id)
        limits = Rows(
            rows=answer.limits,
            columns=limit_columns({key_id: found.name}),
            empty="It meets no limit.",
        )
        return Facts(item=answer, columns=COLUMNS, parts=[("Limits", limits)])

    with_database(work)


@contextlib.asynccontextmanager
async def _gateway(settings: Settings, database: Database) -> AsyncIterator[Gateway]:
    """Open a gateway that only quotes. It asks Venice for what only Venice prices."""
    key = UpstreamKey(
        id=ENVIRONMENT_KEY_ID, name="environment", secret=settings.venice_api_key or "none"
    )
    books = ledger.Ledger(database, uuid7(), settings.max_end_users)
    async with open_venice(
        settings, base_url=settings.venice_base_url, keys=UpstreamKeys([key])
    ) as venice:
        yield Gateway(
            books,
            await read_catalog(database),
            venice,
            settings.heartbeat_s,
            FreeRequests(Lanes(database)),
            Recorder(database),
        )


def _chat(model: str | None, max_tokens: int | None, prompt: str | None) -> bytes:
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": prompt or ""}],
    }
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    return msgspec.json.encode(body)
