"""``GET /openapi.json``: what every route takes and answers, made from the routes themselves.

A route is registered with a :class:`RouteSpec`, and there is no other way to register one. What it
takes and gives are msgspec types; what can go wrong follows from those and from the error tree.
"""

import hashlib
import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import KW_ONLY, dataclass
from functools import cached_property, partial
from http import HTTPStatus
from typing import Any, Final, Literal
from urllib.parse import quote

import msgspec
from aiohttp import web

from service import __version__
from service.anthropic import AnthropicError
from service.api.dialects import Error
from service.api.queries import schema_of
from service.api.requests import Request
from service.api.wire import Handler
from service.errors import (
    ClientError,
    Forbidden,
    NotFound,
    PayloadTooLarge,
    RateLimited,
    RequestTimeout,
    ServiceError,
    Unauthenticated,
    Unavailable,
    UnsupportedEncoding,
    UpstreamError,
    UpstreamRejected,
)

JSON: Final = "application/json"
FORM: Final = "multipart/form-data"
NO_BODY: Final = ()
"""``gives`` of a route that answers without a body."""
NOT_MODIFIED: Final = "304"
UPSTREAM_ERRORS: Final = (NotFound, UpstreamError)
"""The errors of a request that is passed on to Venice."""
SHARED_STATUSES: Final = {"400", "404", "408", "413", "415"}
"""Statuses that both Venice and the gateway answer. Any other 4xx of Venice is kept too, except
those about the operator's account, which are 503 here."""
SECURITY: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key: `rk_…`."},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
INFO: Final = {
    "title": "Rialto",
    "version": __version__,
    "description": (
        "A gateway for Venice AI. Members of paid requests that are not described here pass to"
        " Venice unread, and its answers pass back as they are. Routes that answer GET answer HEAD"
        " too. Every answer carries `x-request-id`; a refusal that is worth repeating carries"
        " `Retry-After`."
    ),
}
NAMED: Final = {
    "/admin/v1/organizations/{id}": "An id or a name.",
    "/admin/v1/keys/{id}": "An id, the beginning of the key, or a name.",
}
"""Paths that begin like this take more than an id."""
_OPENING: Final = re.compile(r"^`[^`]+`(?: → \d+)?(?: with the operator's key)?[:;,]?\s*")
_SENTENCE_END: Final = re.compile(r"\.(?:\s|$)|[:;] ")
_PARAMETER: Final = re.compile(r"{(\w+)}")

Json = dict[str, Any]
Access = Literal["public", "caller", "administrator", "operator"]
"""Who may use a route: anybody; a key of any role; a key of role admin, for its own organization,
and the operator; the operator alone."""


@dataclass(frozen=True, slots=True)
class RouteSpec:
    """Describes a route: who may use it, its request, its answer and its errors.

    ``gives`` is the type of its JSON, or the media types of another answer; ``also`` are other
    statuses with the same body. ``takes`` is the type of a JSON body; with ``files`` it may be a
    form with files of these names, and without ``takes_json`` it must be. ``refuses`` are the
    errors that do not follow from the rest.
    """

    access: Access
    _: KW_ONLY
    gives: Any
    takes: Any = None
    takes_json: bool = True
    files: tuple[str, ...] = ()
    query: type[msgspec.Struct] | None = None
    status: int = 200
    also: tuple[int, ...] = ()
    refuses: tuple[type[ServiceError], ...] = ()
    error: type[msgspec.Struct] = Error


public: Final = partial(RouteSpec, "public")
caller: Final = partial(RouteSpec, "caller")
administrator: Final = partial(RouteSpec, "administrator")
operator: Final = partial(RouteSpec, "operator")
messages: Final = partial(RouteSpec, "caller", error=AnthropicError)


class Routes:
    """Adds routes with their specs, and describes them all."""

    def __init__(self, app: web.Application) -> None:
        self._router = app.router
        self._specs: dict[web.AbstractRoute, RouteSpec] = {}
        self._pages: set[web.AbstractRoute] = set()

    def add(self, route: str, handler: Handler, spec: RouteSpec) -> None:
        """``route`` is a method and a path; GET answers HEAD too."""
        method, path = route.split()
        # Its requests are of the server's own class, which aiohttp's types do not know.
        untyped: Any = handler
        if method == "GET":
            added = self._router.add_get(path, untyped, expect_handler=_expect)
        else:
            added = self._router.add_route(method, path, untyped, expect_handler=_expect)
        self._specs[added] = spec

    def add_page(self, method: str, path: str, handler: Handler) -> None:
        """Add a route of people's browsers, which is no part of the API and its description."""
        untyped: Any = handler
        if method == "GET":
            added = self._router.add_get(path, untyped, expect_handler=_expect)
        else:
            added = self._router.add_route(method, path, untyped, expect_handler=_expect)
        self._pages.add(added)

    async def describe(self, request: Request) -> web.Response:
        """``GET /openapi.json``: this description."""
        content, etag = self._encoded
        if any(known.value in (etag, "*") for known in request.if_none_match or ()):
            response = web.Response(status=304)
        else:
            response = web.Response(body=content, content_type=JSON)
        response.etag = etag
        # The same for everybody, and asked for again with its ETag.
        response.headers["Cache-Control"] = "no-cache"
        return response

    @cached_property
    def _encoded(self) -> tuple[bytes, str]:
        """The document, made when it is first asked for, and its ETag."""
        content = msgspec.json.encode(self.document())
        return content, hashlib.sha256(content).hexdigest()[:32]

    def document(self) -> Json:
        """The description of every route, in OpenAPI 3.1.

        :raises KeyError: for a route that was not added here.
        """
        routes = [
            route
            for route in self._router.routes()
            if route.method != "HEAD" and route not in self._pages
        ]
        specs = [(route, self._specs[route]) for route in routes]
        schemas = _Schemas(spec for _, spec in specs)
        paths: dict[str, Json] = {}
        for route, spec in specs:
            path = route.resource.canonical if route.resource is not None else ""
            item, method = paths.setdefault(path, {}), route.method.lower()
            item[method] = _operation(method, path, route.handler, spec)
            item[method] |= schemas.exchange(path, spec)
        for path in paths:
            # The same by another name.
            if path.startswith("/api/") and (twin := path.removeprefix("/api")) in paths:
                paths[path] = {"$ref": "#/paths/" + quote(twin.replace("/", "~1"))}
        return {
            "openapi": "3.1.0",
            "info": INFO,
            "servers": [{"url": "/"}],
            "paths": paths,
            "components": {
                "schemas": schemas.components,
                "responses": schemas.refusals,
                "securitySchemes": SECURITY,
            },
        }


async def _expect(_: web.Request) -> None:
    """Send no ``100 Continue`` here: the client gets it when its body is read, if it is. Any
    other expectation is ignored, as RFC 9110 allows."""


def _operation(method: str, path: str, handler: Any, spec: RouteSpec) -> Json:
    """What the route is called, what it does and who may call it."""
    text = " ".join(inspect.cleandoc(handler.__doc__ or "").split()).replace("``", "`")
    summary = _SENTENCE_END.split(_OPENING.sub("", text), maxsplit=1)[0]
    name = "_".join(re.findall(r"\w+", f"{method} {path}"))
    operation: Json = {
        "operationId": name,
        "summary": summary[:1].upper() + summary[1:],
        "description": text,
        "tags": [spec.access],
    }
    if spec.access != "public":
        operation["security"] = [{scheme: []} for scheme in SECURITY]
    return operation


class _Schemas:
    """The schemas of everything that routes take and give."""

    def __init__(self, specs: Iterable[RouteSpec]) -> None:
        types: list[Any] = []
        for spec in specs:
            types += [spec.takes, spec.error]
            types += [] if isinstance(spec.gives, tuple) else [spec.gives]
        self._types = [kind for kind in dict.fromkeys(types) if kind is not None]
        schemas, self.components = msgspec.json.schema_components(
            self._types, ref_template="#/components/schemas/{name}"
        )
        self._schema_of = dict(zip(self._types, schemas, strict=True))
        self.refusals: dict[str, Json] = {}
        """The error responses, by name."""

    def exchange(self, path: str, spec: RouteSpec) -> Json:
        """Parameters, body and answers of a route."""
        exchange: Json = {"responses": self._answers(path, spec)}
        if parameters := [*self._path(path), *self._query(spec)]:
            exchange["parameters"] = parameters
        if spec.takes is not None:
            exchange["requestBody"] = {"required": True, "content": self._body(spec)}
        return exchange

    def _path(self, path: str) -> Iterator[Json]:
        named = next((text for start, text in NAMED.items() if path.startswith(start)), None)
        for name in _PARAMETER.findall(path):
            schema = {"type": "string"}
            if name == "id" and named is not None:
                schema["description"] = named
            elif name == "id" and path.startswith("/admin/"):
                schema["format"] = "uuid"
            yield {"name": name, "in": "path", "required": True, "schema": schema}

    def _query(self, spec: RouteSpec) -> Iterator[Json]:
        if spec.query is None:
            return
        _, components = msgspec.json.schema_components([spec.query], schema_hook=schema_of)
        for name, schema in components[spec.query.__name__]["properties"].items():
            yield {"name": name, "in": "query", "required": False, "schema": schema}

    def _body(self, spec: RouteSpec) -> Json:
        schema = self._schema_of[spec.takes]
        content = {JSON: {"schema": schema}} if spec.takes_json else {}
        if spec.files:
            files = {name: {"type": "string", "format": "binary"} for name in spec.files}
            form: Json = {"type": "object", "properties": files}
            if not spec.takes_json:
                form["required"] = list(spec.files)
            content[FORM] = {"schema": {"allOf": [schema, form]}}
        return content

    def _answers(self, path: str, spec: RouteSpec) -> Json:
        answers: Json = {}
        for status in map(str, (spec.status, *spec.also)):
            answers[status] = {"description": HTTPStatus(int(status)).phrase}
            if spec.gives != NO_BODY and status != NOT_MODIFIED:
                answers[status]["content"] = self._content(spec.gives)
        for range_, codes in sorted(_codes(_errors(path, spec)).items()):
            if range_ not in answers:
                name = "_".join([spec.error.__name__, range_, *codes])
                self.refusals[name] = self._error(codes, spec.error)
                answers[range_] = {"$ref": f"#/components/responses/{name}"}
        return answers

    def _content(self, gives: Any) -> Json:
        if isinstance(gives, tuple):
            return {kind: {} for kind in gives}
        return {JSON: {"schema": self._schema_of[gives]}}

    def _error(self, codes: list[str], error: type[msgspec.Struct]) -> Json:
        detail = {"properties": {"code": {"enum": codes}}}
        schema = {**self._schema_of[error], "properties": {"error": detail}}
        description = ", ".join(f"`{code}`" for code in codes)
        return {"description": description, "content": {JSON: {"schema": schema}}}


def _errors(path: str, spec: RouteSpec) -> Iterator[type[ServiceError]]:
    """Every class of error that the route can answer."""
    yield ServiceError
    yield from spec.refuses
    if spec.access != "public":
        yield from (Unauthenticated, Forbidden, RateLimited, Unavailable)
    if "{" in path:
        yield NotFound
    if path.startswith(tuple(NAMED)):
        yield ClientError
    if spec.query is not None:
        yield ClientError
    if spec.takes is not None:
        yield from (ClientError, RequestTimeout, PayloadTooLarge, UnsupportedEncoding)
    if UpstreamError in spec.refuses:
        yield from UpstreamError.__subclasses__()


def _codes(errors: Iterable[type[ServiceError]]) -> dict[str, list[str]]:
    """The codes by status. Venice's own 4xx is kept where it refuses a request."""
    classes, codes = set(errors), dict[str, set[str]]()
    if UpstreamRejected in classes:
        codes["4XX"] = {UpstreamRejected.code}
    for kind in classes:
        codes.setdefault(str(kind.status), set()).update(kind.codes())
    if UpstreamRejected in classes:
        for status in codes.keys() & SHARED_STATUSES:
            codes[status].add(UpstreamRejected.code)
    return {status: sorted(those) for status, those in codes.items()}
