"""What every administrative request has in common, so that its handler shows only what it does."""

import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar
from uuid import UUID

import msgspec
from aiohttp import web

from service import accounts
from service.accounts import ApiKey, Caller
from service.api.auth import (
    authenticate_administrator,
    database_of,
    must_administer,
    must_be_operator,
)
from service.api.description import NO_BODY, Routes, RouteSpec
from service.api.queries import read_query
from service.api.requests import Request
from service.api.state import CALLERS
from service.api.wire import (
    Handler,
    json_response,
    path_id,
    read_as,
)
from service.audit import Actor
from service.database.database import Database
from service.errors import ClientError, Forbidden, NotFound

T = TypeVar("T")
Q = TypeVar("Q", bound=msgspec.Struct)


class Operation:
    """A request to administer, of an authenticated caller. A handler first finds out whether the
    caller may make it, then reads its query or body. A route that is the operator's alone needs no
    check of its own."""

    def __init__(self, request: Request, caller: Caller, spec: RouteSpec) -> None:
        self.request = request
        self.app = request.app
        self.caller = caller
        self._spec = spec

    @property
    def database(self) -> Database:
        """The database, within the share of the caller's organization."""
        return database_of(self.request)

    @property
    def actor(self) -> Actor:
        """Who makes the change, for the audit."""
        return actor_of(self.request)

    @property
    def path_id(self) -> UUID:
        """The id in the path.

        :raises NotFound: when it is no UUID.
        """
        return path_id(self.request)

    def must_be_operator(self) -> None:
        """:raises Forbidden: when the caller is not the operator."""
        must_be_operator(self.caller)

    def must_administer(self, organization_id: UUID) -> None:
        """:raises Forbidden: when the organization is not the caller's to administer."""
        must_administer(self.caller, organization_id)

    @property
    def own_organization(self) -> UUID | None:
        """The only organization that the caller administers; None for the operator, who
        administers all."""
        return None if self.caller.role == "operator" else self.caller.organization_id

    async def administered_organization(self) -> UUID:
        """The organization that the path names; see :meth:`find_organization`."""
        return await self.find_organization(self.request.match_info["id"])

    async def administered_key(self) -> ApiKey:
        """The key that the path names; see :meth:`find_key`."""
        key_id = await self.find_key(self.request.match_info["id"])
        return await accounts.find_key(self.database, key_id)

    async def stated_organization(self, text: str | msgspec.UnsetType) -> UUID | None:
        """The organization that a query names, see :meth:`find_organization`; without one all that
        the caller administers, see :attr:`own_organization`."""
        return await self.find_organization(text) if text else self.own_organization

    async def find_organization(self, text: str) -> UUID:
        """The organization with this id or name, if the caller administers it. For an administrator
        all other organizations look as if they did not exist.

        :raises Forbidden: for an administrator, of any id but its own organization's.
        :raises NotFound: when there is none; for an administrator, of any name but its own's.
        :raises ClientError: when several have the name.
        """
        own, stated_id = self.own_organization, accounts.parse_id(text)
        if stated_id is not None:
            self.must_administer(stated_id)
        return await accounts.find_organization_id(self.database, text, own)

    async def find_key(self, text: str, organization_id: UUID | None = None) -> UUID:
        """The key with this id, prefix or name, if the caller administers it, optionally of one
        organization alone. For an administrator all keys of others look as if they did not exist.

        :raises Forbidden: for an administrator, of any id but those of its own keys.
        :raises NotFound: when there is none; for an administrator, of any other's name or prefix.
        :raises ClientError: when several keys fit, or it is a whole key.
        """
        own = self.own_organization
        try:
            return await accounts.find_key_id(self.database, text, own or organization_id)
        except NotFound:
            if own is None or accounts.parse_id(text) is None:
                raise
            raise Forbidden("This key administers its own organization only.") from None

    async def read_body(self, shape: type[T]) -> T:
        """The JSON body, as the type that describes it.

        :raises ClientError, PayloadTooLarge: naming the field and the rule.
        """
        _must_be_described(shape, self._spec.takes)
        return await read_as(self.request, shape)

    def read_query(self, shape: type[Q]) -> Q:
        """The query, as the type that describes it.

        :raises ClientError: naming the parameter and the rule.
        """
        _must_be_described(shape, self._spec.query)
        return read_query(self.request, shape)

    def transaction(self) -> contextlib.AbstractAsyncContextManager[Any]:
        """A transaction on the caller's share of the database."""
        return self.database.transaction()

    def caller_change(self) -> contextlib.AbstractAsyncContextManager[Any]:
        """A transaction that changes what callers may do; see :func:`caller_change`."""
        return caller_change(self.request, self.database)


def actor_of(request: Request) -> Actor:
    """Who makes a change, for the audit."""
    caller = request.caller
    return Actor(
        name=caller.actor_name,
        request_id=request.request_id,
        is_administrator=caller.role != "operator",
    )


@contextlib.asynccontextmanager
async def caller_change(request: Request, database: Database) -> AsyncIterator[Any]:
    """A transaction that changes what callers may do. This process applies the change before it
    answers; the others do when NOTIFY reaches them, which may be after the answer."""
    is_refused = False
    try:
        async with database.transaction() as conn:
            yield conn
    except ClientError:
        # Nothing was committed, and whoever repeats such a request empties no cache.
        is_refused = True
        raise
    finally:
        # After a failure too: a commit may succeed although its acknowledgement is lost.
        if not is_refused:
            request.app[CALLERS].forget()


OperationHandler = Callable[[Operation], Awaitable[Any]]


def add_operation(routes: Routes, route: str, handler: OperationHandler, spec: RouteSpec) -> None:
    """Add a route to administer. Its handler gets the :class:`Operation` and returns the value that
    is answered as JSON with the status of ``spec``, or a whole response."""
    routes.add(route, _authenticated(handler, spec), spec)


def _authenticated(handler: OperationHandler, spec: RouteSpec) -> Handler:
    @functools.wraps(handler)
    async def handle(request: Request) -> web.StreamResponse:
        caller = await authenticate_administrator(request)
        if spec.access == "operator":
            must_be_operator(caller)
        answer = await handler(Operation(request, caller, spec))
        if isinstance(answer, web.StreamResponse):
            return answer
        if spec.gives == NO_BODY:
            return web.Response(status=spec.status)
        return json_response(answer, spec.status)

    return handle


def _must_be_described(shape: Any, described: Any) -> None:
    """:raises TypeError: when a handler reads another type than its route is described with."""
    if shape is not described:
        raise TypeError(f"The route is described with {described}, and reads {shape}.")
