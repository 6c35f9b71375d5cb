"""The requests that handlers get, and the routes that are found by their path alone."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol

from aiohttp import web

from service.accounts import VISITOR, Caller
from service.api.dialects import Dialect, dialect_of
from service.gateway import AnswerRelay
from service.shares import Share

QUIET_PATHS: Final = frozenset({"/health", "/health/full", "/metrics"})


class Connection(Protocol):
    """What a request needs of its connection."""

    is_known: bool
    """Whether a request of it has shown a key."""

    def show_key(self, caller: Caller) -> None:
        """A request of it has the key of this caller."""


class KnownRoute(NamedTuple):
    """A route whose path has no names in it."""

    match_info: web.UrlMappingMatchInfo
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    method: str
    path: str
    dialect: Dialect
    is_quiet: bool


KnownRoutes = Mapping[tuple[str, str], KnownRoute]
"""The known routes of an application, by method and path."""


def known_routes(app: web.Application) -> KnownRoutes:
    """The routes that need no router. It would walk the path, and make a new object of what it
    finds, for each request."""
    known = {}
    for route in app.router.routes():
        if isinstance(route.resource, web.PlainResource):
            match_info = web.UrlMappingMatchInfo({}, route)
            match_info.add_app(app)
            match_info.freeze()
            method, path = route.method, route.resource.canonical
            known[method, path] = KnownRoute(
                match_info, route.handler, method, path, dialect_of(path), path in QUIET_PATHS
            )
    return known


class Request(web.Request):
    """A request, and what is known of it. Its attributes are slots, since each is read several
    times for each request; aiohttp looks the application up through the route."""

    __slots__ = (
        "app",
        "body_share",
        "caller",
        "connection",
        "dialect",
        "facts",
        "is_quiet",
        "known_route",
        "place",
        "relay",
        "request_id",
    )
    ATTRS = web.Request.ATTRS | frozenset(__slots__)

    app: web.Application
    connection: Connection
    known_route: KnownRoute | None
    """None if the router has to find it."""
    request_id: str
    dialect: Dialect
    """Makes the bodies of errors."""
    is_quiet: bool
    """Whether it comes so often that its success needs no line in the log."""
    caller: Caller
    """Whose request it is, once authentication knows; no body of an API's route is read before."""
    place: Share | None
    """Its place among the requests that are under way."""
    body_share: Share | None
    """How much of the room for bodies it has."""
    relay: AnswerRelay | None
    """The relay of a paid call, once the call is prepared."""
    facts: dict[str, Any]
    """What its line in the log states beside its route, status and duration."""

    def __init__(
        self,
        app: web.Application,
        routes: KnownRoutes,
        message: Any,
        payload: Any,
        protocol: Any,
        writer: Any,
        task: Any,
    ) -> None:
        super().__init__(message, payload, protocol, writer, task, asyncio.get_running_loop())
        self.app = app
        self.connection = protocol
        self.request_id = ""
        self.place = self.body_share = self.relay = None
        self.caller = VISITOR
        self.facts = {}
        self.known_route = known = routes.get((message.method, message.path))
        if known is None:
            self.dialect = dialect_of(self.path)
            self.is_quiet = self.path in QUIET_PATHS
        else:
            self.dialect = known.dialect
            self.is_quiet = known.is_quiet
            self._match_info = known.match_info
