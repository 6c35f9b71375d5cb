"""The routes that callers use."""

import contextlib
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Final
from urllib.parse import quote as percent_encoded

import msgspec
from aiohttp import web

from service import anthropic, ledger, money
from service.accounts import Caller
from service.anthropic import MAX_MODELS
from service.api import media, messages
from service.api.auth import authenticate, authenticate_free, database_of
from service.api.dialects import ANTHROPIC, ErrorDetail, error_object
from service.api.queries import read_query, text_of
from service.api.requests import Request
from service.api.state import CATALOG, GATEWAY, INTAKE, SETTINGS, VENICE
from service.api.wire import (
    Handler,
    json_response,
    pass_on,
    read_or_pass,
    relay,
)
from service.errors import ClientError, NotFound, Unavailable, UpstreamError
from service.formats import body
from service.gateway import (
    CHAT,
    ENDPOINTS,
    OTHER,
    Call,
    Endpoint,
    Inbound,
    Quote,
    parse,
    read_large,
)
from service.ledger import Limit
from service.settings import allow_lists
from service.upstream import UpstreamResponse

JOB_STEPS: Final = ("/retrieve", "/complete")
"""The ends of the paths that ask for a queued job."""
ANTHROPIC_VERSION: Final = "anthropic-version"
"""The header by which Anthropic's clients are known."""
QUEUE_ID: Final = re.compile(r"[!-~]{1,256}")
TRANSLATED_PATHS: Final[Mapping[str, Callable[[Request, Caller], Awaitable[Call]]]] = {
    "messages": messages.read_call,
    "images/edits": media.read_edit,
}
"""Paid paths that Venice does not have, with the functions that translate their requests."""


class QuoteAnswer(msgspec.Struct, kw_only=True):
    """What a call could cost at most, null without a price, and whether it would pass."""

    endpoint: str
    model: str
    max_cost_usd: str | None
    max_tokens: int
    max_output_tokens: int | None
    would_pass: bool
    refusal: ErrorDetail | None
    limits: Sequence[Limit]


class ModelsQuery(msgspec.Struct):
    """The type of the models to list, by Venice's name for it. The others page the list of clients
    that send ``anthropic-version``."""

    type: str | msgspec.UnsetType = msgspec.UNSET
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_MODELS)] = MAX_MODELS
    after_id: str | msgspec.UnsetType = msgspec.UNSET
    before_id: str | msgspec.UnsetType = msgspec.UNSET


def paid(endpoint: Endpoint[Any]) -> Handler:
    """The handler of a paid endpoint."""

    async def handle(request: Request) -> web.StreamResponse:
        caller = await authenticate(request)
        inbound = await _inbound(request, endpoint.path, caller, endpoint)
        context = request.app[GATEWAY].call(caller, await parse(endpoint, inbound))
        request.relay = context.relay
        # The body need not be in memory twice until the call ends.
        del inbound
        async with context as answer:
            return await relay(request, answer)

    handle.__doc__ = type(endpoint).__doc__
    return handle


def free(path: str) -> Handler:
    """The handler of a free path of Venice: the request and the answer are passed on unchanged."""

    async def handle(request: Request) -> web.StreamResponse:
        caller = await authenticate_free(request)
        inbound = await _inbound(request, path, caller)
        headers = {"Accept": request.headers.get("Accept", "*/*")}
        if inbound.content:
            headers["Content-Type"] = inbound.content_type
        venice, upstream_path = request.app[VENICE], _with_query(request, inbound.path)
        if path.endswith(JOB_STEPS):
            headers["Content-Type"] = inbound.read_type(takes_form=False)
            answer = await _ask_for_job(request, caller, path, inbound.content, headers)
        else:
            answer = await venice.forward(request.method, upstream_path, inbound.content, headers)
        try:
            return await pass_on(request, answer.headers, answer)
        finally:
            answer.close()

    handle.__doc__ = f"``{path}``: Venice's own answer, at no cost."
    return handle


async def _ask_for_job(
    request: Request, caller: Caller, path: str, content: bytes, headers: Mapping[str, str]
) -> UpstreamResponse:
    """Ask Venice for a job that the caller's organization queued, with the key that queued it. When
    Venice states a refund, the ledger credits the job.

    :raises NotFound: when the organization queued no such job. Venice is not asked, since it
        answers for the whole account.
    """
    ticket = await read_large(len(content), body.decode, content, dict[str, Any])
    queue_id = ticket.get("queue_id")
    if not isinstance(queue_id, str) or not QUEUE_ID.fullmatch(queue_id):
        raise ClientError(
            "queue_id: must be 1 to 256 printable ASCII characters without spaces.",
            param="queue_id",
        )
    database, organization_id = database_of(request), caller.organization_id
    job = await ledger.find_job(database, organization_id, queue_id)
    # Encoded again, so that Venice reads the same id as this function.
    asked = msgspec.json.encode(ticket)
    key_id = job.upstream_key_id
    try:
        return await request.app[VENICE].post_for_job(path, asked, headers, organization_id, key_id)
    except UpstreamError as error:
        if error.is_refunded:
            # If the ledger cannot be reached now, the watch over the job credits it later.
            with contextlib.suppress(Unavailable):
                await ledger.refund(database, organization_id, job.call_id)
        raise


class OtherPaths:
    """Paths of Venice that Rialto does not know and the operator has allowed. The price of these
    calls is unknown.

    ``known_paths`` are the paths that Rialto knows, with names in braces. They stay known with
    another method or in another case of letters.
    """

    def __init__(self, known_paths: Iterable[str]) -> None:
        patterns = (re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path)) for path in known_paths)
        self._known = re.compile("|".join(patterns), re.IGNORECASE)

    async def call(self, request: Request) -> web.StreamResponse:
        """Any path on the operator's list."""
        caller = await authenticate(request)
        path = "/" + request.match_info["other"]
        paths = request.app[SETTINGS].venice_other_paths
        entry = None if self._known.fullmatch(path) else allow_lists.find_entry(path, paths)
        if entry is None:
            raise NotFound(
                f"There is nothing at {request.method} {path!r}. If Venice has it, the operator can"
                " open it with VENICE_OTHER_PATHS."
            )
        content, upload = await read_or_pass(request)
        inbound = Inbound(
            content=content,
            upload=upload,
            request_id=request.request_id,
            headers=request.headers,
            path=_with_query(request, path),
            method=request.method,
            opened_by=entry,
        )
        context = request.app[GATEWAY].call(caller, OTHER.parse(inbound))
        request.relay = context.relay
        async with context as answer:
            return await relay(request, answer)


def _must_be_plain(path: str) -> None:
    """Refuse names that would turn the path into another one at Venice."""
    parts = path.split("/")[1:]
    if any(part in ("", ".", "..") or "\\" in part for part in parts):
        raise NotFound(f"There is nothing at {path!r}.")


async def _inbound(
    request: Request,
    path: str,
    caller: Caller,
    endpoint: Endpoint[Any] = CHAT,
    names: Mapping[str, str] | None = None,
) -> Inbound:
    """``names`` are the names in the path, if it is not the path of the request."""
    names = request.match_info if names is None else names
    if names:
        _must_be_plain(path.format(**names))
        path = path.format(**{name: percent_encoded(value, "") for name, value in names.items()})
    if endpoint.reads_body:
        content, upload = await request.app[INTAKE].read(request), None
    else:
        content, upload = await read_or_pass(request)
    return Inbound(
        content=content,
        upload=upload,
        request_id=request.request_id,
        headers=request.headers,
        path=path,
        settings=caller.settings,
    )


def _with_query(request: Request, path: str) -> str:
    return f"{path}?{request.rel_url.raw_query_string}" if request.query_string else path


async def quote(request: Request) -> web.Response:
    """``POST /v1/quote``: what a call could cost, which limits it would meet, and whether it would
    pass. The body is that of a chat completion; below ``/v1/quote/{path}`` that of another paid
    call. No call is made and nothing is held."""
    caller = await authenticate_free(request)
    path = request.match_info.get("path")
    if (read := TRANSLATED_PATHS.get(path or "")) is not None:
        asked = await read(request, caller)
    else:
        endpoint, names = quotable(path)
        inbound = await _inbound(request, endpoint.path, caller, names=names)
        asked = await parse(endpoint, inbound)
    return json_response(await quote_call(request.app, caller, asked))


async def quote_call(app: web.Application, caller: Caller, asked: Call) -> QuoteAnswer:
    """What the call could cost, and whether it would pass now.

    :raises ServiceError: as :meth:`Gateway.quote`.
    """
    return quote_answer(await app[GATEWAY].quote(caller, asked))


def quote_answer(quote: Quote) -> QuoteAnswer:
    """The answer to a question for a quote."""
    call, bound, refusal = quote.call, quote.bound, quote.refusal
    return QuoteAnswer(
        endpoint=call.endpoint.path,
        model=call.model,
        max_cost_usd=None if bound.nanos is None else money.format_usd(bound.nanos),
        max_tokens=bound.tokens,
        max_output_tokens=bound.output_cap or call.max_output,
        would_pass=refusal is None,
        refusal=None if refusal is None else error_object(refusal, None).error,
        limits=quote.limits,
    )


def quotable(path: str | None) -> tuple[Endpoint[Any], Mapping[str, str]]:
    """The endpoint of a path, that of chat completions without one, and the names in the path.

    :raises NotFound: when there is no paid call at the path.
    """
    if path is None:
        return CHAT, {}
    for endpoint in ENDPOINTS:
        pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/{}]+)", endpoint.path)
        if (match := re.fullmatch(pattern, f"/{path}")) is not None:
            return endpoint, match.groupdict()
    raise NotFound(f"There is no paid call at {f'/{path}'!r}.")


async def models(request: Request) -> web.Response:
    """``GET /v1/models?type=``: the models that the caller's key may use, those for text unless
    another type is asked for. Clients that send ``anthropic-version`` get them in Anthropic's
    format, by ``limit``, ``after_id`` and ``before_id``."""
    is_anthropic = _is_anthropic(request)
    caller = await authenticate_free(request)
    body = await request.app[CATALOG].listing(
        caller.organization_id, caller.allowed_models, request.query.get("type", "text")
    )
    if is_anthropic:
        query = read_query(request, ModelsQuery)
        after_id, before_id = text_of(query.after_id), text_of(query.before_id)
        return json_response(anthropic.models_page(body, query.limit, after_id, before_id))
    return web.Response(body=body, content_type="application/json")


async def model(request: Request) -> web.Response:
    """``GET /v1/models/{model}``: one model that the caller's key may use, by any of its names."""
    is_anthropic = _is_anthropic(request)
    caller = await authenticate_free(request)
    body = await request.app[CATALOG].entry(
        caller.organization_id, caller.allowed_models, request.match_info["model"]
    )
    if is_anthropic:
        return json_response(anthropic.model_info(body))
    return web.Response(body=body, content_type="application/json")


def _is_anthropic(request: Request) -> bool:
    """Whether the client is one of Anthropic's API, which then gets errors in its format too."""
    if ANTHROPIC_VERSION not in request.headers:
        return False
    request.dialect = ANTHROPIC
    return True
