"""What the handler of a page gets: who looks at it, the database, what was asked for, and how to
answer."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, ParamSpec, TypeVar
from uuid import UUID

import aiohttp_jinja2
import msgspec
import structlog
from aiohttp import web

from service.accounts import Caller, Role
from service.api.operations import caller_change
from service.api.queries import read_fields
from service.api.requests import Request
from service.api.state import LANES, SETTINGS
from service.api.wire import path_id
from service.audit import Actor
from service.dashboard.forms import FormState, form_state, stated_fields
from service.dashboard.notices import NOTICES
from service.dashboard.paths import url
from service.dashboard.sessions import Session
from service.database.database import Database
from service.errors import ServiceError, Unavailable

log = structlog.get_logger()
P = ParamSpec("P")
T = TypeVar("T")
Q = TypeVar("Q", bound=msgspec.Struct)

OPERATOR_PAGES: Final = UUID(int=3)
"""Whose lane of the database the operator's pages share, so that they never take more of it than
the pages of one organization."""
PART_TIMEOUT_S: Final = 2.0
PAGE_TIMEOUT_S: Final = 6.0
"""How long one part of a page may take, and all of its parts together."""
PART_HEADER: Final = "X-Part"
"""Names the part of a page that the script asks for again."""


class Viewer(msgspec.Struct, frozen=True, kw_only=True):
    """Who has signed in."""

    caller: Caller
    session: Session
    request_id: str

    @property
    def role(self) -> Role:
        return self.caller.role

    @property
    def is_operator(self) -> bool:
        return self.caller.role == "operator"

    @property
    def organization_id(self) -> UUID | None:
        """The organization whose books the viewer sees; None for the operator, who sees all."""
        return None if self.is_operator else self.caller.organization_id

    @property
    def api_key_id(self) -> UUID | None:
        """The key that signed in; None for the operator's key of the settings."""
        return self.caller.api_key_id

    @property
    def actor(self) -> Actor:
        """Who makes a change, for the audit."""
        return Actor(
            name=self.caller.actor_name,
            request_id=self.request_id,
            is_administrator=not self.is_operator,
        )


class Page:
    """A request for a page, or for a change that a page asks for.

    ``fields`` are those of the form, which a page of our own sent. If the form was refused,
    ``error`` has the reason, and the page is shown again.
    """

    def __init__(
        self, request: Request, section: str, viewer: Viewer | None, fields: Mapping[str, str]
    ) -> None:
        self.request = request
        self.app = request.app
        self.section = section
        self.now = datetime.now(UTC)
        self.fields = fields
        self.error: ServiceError | None = None
        self._viewer = viewer
        self._ends_at = asyncio.get_running_loop().time() + PAGE_TIMEOUT_S
        self._database: Database | None = None

    @property
    def is_signed_in(self) -> bool:
        return self._viewer is not None

    @property
    def viewer(self) -> Viewer:
        """Who looks at the page. A route that is for everybody has nobody.

        :raises TypeError: when nobody is known.
        """
        if self._viewer is None:
            raise TypeError("This route is for everybody, and knows no viewer.")
        return self._viewer

    @property
    def database(self) -> Database:
        """The database, within the viewer's share. The operator's pages have one share together."""
        if self._database is None:
            owner = self.viewer.organization_id or OPERATOR_PAGES
            self._database = self.app[LANES].of(owner)
        return self._database

    @property
    def csrf(self) -> str:
        """The token of the session's forms."""
        return self.viewer.session.token

    @property
    def notice(self) -> str:
        """What the last change reports; empty if there is nothing to report."""
        return NOTICES.get(self.request.query.get("notice", ""), "")

    @property
    def service_url(self) -> str:
        """Where clients find this service: the host that the browser asked. In production an edge
        ends TLS, so the scheme of the request is not the browser's."""
        scheme = "https" if self.app[SETTINGS].is_production else self.request.scheme
        return f"{scheme}://{self.request.host}"

    @property
    def path_id(self) -> UUID:
        """The id in the path.

        :raises NotFound: when it is no UUID.
        """
        return path_id(self.request)

    def path(self, name: str) -> str:
        """A value of the path by its name."""
        return self.request.match_info[name]

    def query(self, shape: type[Q]) -> Q:
        """The query, as the type that describes it. Empty parameters count as absent.

        :raises ClientError: naming the parameter and its rule.
        """
        return read_fields(stated_fields(self.request.query), shape)

    def form(self, shape: type[Q]) -> Q:
        """The form, as the type that describes it. Empty fields count as absent.

        :raises ClientError: naming the field and its rule.
        """
        return read_fields(self.fields, shape)

    def form_state(self, action: str) -> FormState:
        """What the form that is sent to the URL ``action`` shows again."""
        if self.error is not None and action.partition("?")[0] == self.request.path:
            return form_state(action, self.fields, self.error)
        return form_state(action, {}, None)

    async def part(
        self, read: Callable[P, Awaitable[T]], *arguments: P.args, **named: P.kwargs
    ) -> T | None:
        """Read a part of the page. None if it did not come in time, or the database has no room:
        the page then shows that it is not available, and its other parts."""
        left_s = min(PART_TIMEOUT_S, self._ends_at - asyncio.get_running_loop().time())
        try:
            if left_s <= 0:
                raise TimeoutError
            async with asyncio.timeout(left_s):
                return await read(*arguments, **named)
        except (TimeoutError, Unavailable) as error:
            name = getattr(read, "__qualname__", type(read).__name__)
            log.warning("part of a page not available", part=name, cause=type(error).__name__)
            return None

    def change(self) -> contextlib.AbstractAsyncContextManager[Any]:
        """A transaction that changes something; see
        :func:`service.api.operations.caller_change`."""
        return caller_change(self.request, self.database)

    async def render(self, template: str, *, status: int = 200, **context: Any) -> web.Response:
        """The page, made from a template. A page is rendered in a thread, so that a long one delays
        no call."""
        error = self.error
        response: web.Response = await asyncio.to_thread(
            aiohttp_jinja2.render_template,
            template,
            self.request,
            {"page": self, **context},
            status=status if error is None else error.status,
        )
        if error is not None and error.advice.wait_s is not None:
            response.headers["Retry-After"] = str(error.advice.wait_s)
        return response

    def redirect(self, name: str, **values: Any) -> web.Response:
        """Send the browser to another page after a change; ``notice`` names what it reports."""
        return see_other(url(name, **values))


def see_other(location: str) -> web.Response:
    """Send the browser to a URL of ours with GET."""
    response = web.Response(status=303)
    response.headers["Location"] = location
    return response
