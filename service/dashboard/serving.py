"""What every page has in common: who looks at it, whether it may be asked for, headers, errors."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Literal

import msgspec
from aiohttp import web

from service import crypto
from service.accounts import OPERATOR, Caller, Role
from service.api.auth import enter
from service.api.middleware import failure_of
from service.api.requests import Request
from service.api.state import CALLERS, SETTINGS
from service.api.wire import Handler
from service.dashboard.forms import TOKEN_FIELD, read_form
from service.dashboard.origins import is_own_page
from service.dashboard.page import Page, Viewer, see_other
from service.dashboard.paths import PATHS, url
from service.dashboard.sessions import COOKIE, Session
from service.dashboard.state import SESSIONS
from service.errors import ClientError, Forbidden, ServiceError, Unauthenticated, Unavailable

PAGE_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none';"
        " object-src 'none'"
    ),
    # Without a referrer browsers would send the Origin "null" with our own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
GET_TIMEOUT_S: Final = 10.0
"""How long a page may take in all."""
EVERYBODY: Final[frozenset[Role]] = frozenset()
OPERATORS: Final[frozenset[Role]] = frozenset({"operator"})
ADMINISTRATORS: Final[frozenset[Role]] = frozenset({"operator", "admin"})
INFERENCE: Final[frozenset[Role]] = frozenset({"inference"})
HOLDERS: Final[frozenset[Role]] = frozenset({"admin", "inference"})
SIGNED_IN: Final[frozenset[Role]] = frozenset({"operator", "admin", "inference"})

PageHandler = Callable[[Page], Awaitable[web.StreamResponse]]


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """A route of the dashboard.

    ``page`` is the name of its path, and of the page that the navigation marks unless ``section``
    is another one. ``roles`` may use it; none at all means everybody, signed in or not. A form has
    the method POST and a path that ends in ``form``, below its page's. ``shown_by`` is the handler
    of the page that shows the form again when it is refused; without it an error page does.
    """

    page: str
    handler: PageHandler
    roles: frozenset[Role]
    method: Literal["GET", "POST"] = "GET"
    section: str = ""
    form: str = ""
    shown_by: PageHandler | None = None

    @property
    def is_form(self) -> bool:
        return self.method == "POST"

    @property
    def path(self) -> str:
        return PATHS[self.page] + (f"/{self.form}" if self.form else "")


def served(route: Route) -> Handler:
    """The handler of the route, as the server calls it."""

    async def handle(request: Request) -> web.StreamResponse:
        response = await _answered(route, request)
        for name, value in PAGE_HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    return handle


async def _answered(route: Route, request: Request) -> web.StreamResponse:
    viewer: Viewer | None = None
    try:
        if route.is_form and not is_own_page(request):
            raise Forbidden("A form must be sent by a page of Rialto's own.")
        if route.roles:
            viewer = await _find_viewer(request)
            if viewer is None:
                return _without_session(request)
            _must_be_for(route, viewer)
        fields: Mapping[str, str] = {}
        if route.is_form and viewer is not None:
            fields = await _checked_form(request, viewer)
        page = Page(request, route.section or route.page, viewer, fields)
        return await (_changed(route, page) if route.is_form else _shown(route.handler, page))
    except Exception as error:  # noqa: BLE001 - what is not rendered is raised again
        return await render_error(request, route, viewer, failure_of(error))


async def _shown(handler: PageHandler, page: Page) -> web.StreamResponse:
    try:
        async with asyncio.timeout(GET_TIMEOUT_S):
            return await handler(page)
    except TimeoutError:
        raise Unavailable("The page took too long.", retry_after_s=5) from None


async def _changed(route: Route, page: Page) -> web.StreamResponse:
    """Make the change. A form that is refused is shown again with the reason."""
    try:
        return await route.handler(page)
    except ClientError as error:
        if route.shown_by is None:
            raise
        page.error = error
        return await _shown(route.shown_by, page)


async def _find_viewer(request: Request) -> Viewer | None:
    """Who has signed in; None without a session, or if its key is not in force any more.

    :raises RateLimited, Unavailable: when the viewer's organization has its share of requests.
    """
    session = request.app[SESSIONS].read(request)
    if session is None:
        return None
    try:
        caller = await find_caller(request, session)
    except (Unauthenticated, Forbidden):
        return None
    enter(request, caller)
    return Viewer(caller=caller, session=session, request_id=request.request_id)


async def find_caller(request: Request, session: Session) -> Caller:
    """The caller whose key began the session, if the key is in force.

    :raises Unauthenticated, Forbidden: when it is not.
    """
    operator_digest = crypto.key_digest(request.app[SETTINGS].operator_key)
    if crypto.equal(session.key_digest, operator_digest):
        return OPERATOR
    return await request.app[CALLERS].identify_digest(session.key_digest)


def _must_be_for(route: Route, viewer: Viewer) -> None:
    if viewer.role not in route.roles:
        raise Forbidden(f"A key of role {viewer.role} cannot open this page.")


async def _checked_form(request: Request, viewer: Viewer) -> Mapping[str, str]:
    """The fields of a form that has the session's token.

    :raises Forbidden: when it has not.
    """
    fields = await read_form(request)
    if not crypto.equal(fields.pop(TOKEN_FIELD, ""), viewer.session.token):
        raise Forbidden("The form is of another session. Load the page again.")
    return fields


def _without_session(request: Request) -> web.Response:
    """Send the browser to the sign-in page, which leads back."""
    has_cookie = COOKIE in request.cookies
    back = request.path_qs if request.method in ("GET", "HEAD") else ""
    notice = "session_ended" if has_cookie else ""
    response = see_other(url("sign_in", next=back, notice=notice))
    if has_cookie:
        request.app[SESSIONS].end(response)
    return response


async def render_error(
    request: Request, route: Route, viewer: Viewer | None, error: ServiceError
) -> web.Response:
    """The page of an error."""
    page = Page(request, route.section or route.page, viewer, {})
    page.error = error
    return await page.render("error.html")
