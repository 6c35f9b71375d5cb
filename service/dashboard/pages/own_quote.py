"""What a call of the holder's could cost at most, and whether its limits have room for it. No call
is made, and nothing is held."""

from typing import Annotated, Any, Final

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from service.accounts import Caller
from service.api.inference import QuoteAnswer, quote_call
from service.api.queries import Text
from service.api.state import CATALOG, GATEWAY
from service.dashboard.page import Page
from service.errors import ClientError, ServiceError
from service.gateway import CHAT, Inbound, parse

MAX_PROMPT_CHARACTERS: Final = 1_000_000
FIELDS: Final = {"messages": "prompt", "max_completion_tokens": "max_tokens"}
"""The field of the form for each field of the call that an error may name."""


class QuoteForm(msgspec.Struct, kw_only=True):
    """The call to quote. Of the prompt either the text or its length counts; the text wins."""

    model: Text = ""
    prompt: str | UnsetType = UNSET
    prompt_characters: Annotated[int, msgspec.Meta(ge=1, le=MAX_PROMPT_CHARACTERS)] | UnsetType = (
        UNSET
    )
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=2**31)] | UnsetType = UNSET


class _Listed(msgspec.Struct):
    id: str


class _Listing(msgspec.Struct):
    data: list[_Listed]


async def show(page: Page) -> web.StreamResponse:
    """The form."""
    return await _render(page, None)


async def quote(page: Page) -> web.StreamResponse:
    """Quote the call. As a request to ``/v1/quote`` it counts against limits on requests."""
    form = page.form(QuoteForm)
    if not form.model:
        raise ClientError("model: choose a model or an alias.", param="model")
    if form.prompt is UNSET and form.prompt_characters is UNSET:
        raise ClientError("prompt: enter a text, or its length.", param="prompt")
    caller = page.viewer.caller
    await page.app[GATEWAY].count_free(caller)
    try:
        call = await parse(CHAT, _inbound(page, caller, form))
        return await _render(page, await quote_call(page.app, caller, call))
    except ServiceError as error:
        error.param = FIELDS.get(error.param or "", error.param)
        raise


def _inbound(page: Page, caller: Caller, form: QuoteForm) -> Inbound:
    """The chat completion that the form describes."""
    text = form.prompt
    if text is UNSET:
        assert form.prompt_characters is not UNSET  # noqa: S101 - checked with the form
        text = "x" * form.prompt_characters
    body: dict[str, Any] = {
        "model": form.model,
        "messages": [{"role": "user", "content": text}],
    }
    if form.max_tokens is not UNSET:
        body["max_completion_tokens"] = form.max_tokens
    return Inbound(
        content=msgspec.json.encode(body),
        request_id=page.request.request_id,
        headers={},
        path=CHAT.path,
        settings=caller.settings,
    )


async def _render(page: Page, quoted: QuoteAnswer | None) -> web.StreamResponse:
    caller = page.viewer.caller
    listing = await page.part(
        page.app[CATALOG].listing, caller.organization_id, caller.allowed_models, "text"
    )
    names = () if listing is None else msgspec.json.decode(listing, type=_Listing).data
    stated = {name: page.fields.get(name, "") for name in QuoteForm.__struct_fields__}
    return await page.render(
        "own_quote.html", quoted=quoted, models=[listed.id for listed in names], stated=stated
    )
