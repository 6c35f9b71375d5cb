"""Signing in with a key, and out."""

import re
from typing import Final

import structlog
from aiohttp import web

from service import crypto
from service.accounts import OPERATOR, Caller
from service.api.auth import address_of, enter
from service.api.state import CALLERS, SETTINGS
from service.dashboard.forms import read_form
from service.dashboard.page import Page, see_other
from service.dashboard.paths import url
from service.dashboard.state import ATTEMPTS, SESSIONS
from service.errors import ClientError, Unauthenticated

log = structlog.get_logger()

LOCAL_PATH: Final = re.compile(r"/dashboard(?:[/?][!-~]*)?")
"""A page of ours; never another host's."""


async def show(page: Page) -> web.StreamResponse:
    """The form to sign in."""
    request = page.request
    back = _local(page.request.query.get("next", ""))
    is_foreign = request.headers.get("Sec-Fetch-Site") == "cross-site"
    if is_foreign and back and request.query.get("again") is None:
        # A browser keeps the cookie back when a page of another site leads here. The page asks for
        # itself once more, which is no request of that site's.
        again = url("sign_in", next=back, again="1")
        return await page.render("again.html", again=again)
    if request.query.get("again") is not None and request.app[SESSIONS].read(request):
        return see_other(back or url("overview"))
    return await page.render("sign_in.html", back=back)


async def sign_in(page: Page) -> web.StreamResponse:
    """Begin a session of a key that is in force."""
    request = page.request
    request.app[ATTEMPTS].count(address_of(request))
    fields = await read_form(request)
    key = fields.get("key", "")
    if not key:
        raise ClientError("Enter a key.", param="key")
    try:
        caller = await _identify(page, key)
        enter(request, caller)
    except ClientError as error:
        log.warning("sign-in refused", code=error.code)
        raise Unauthenticated(error.message, code=error.code, param="key") from error
    home = "own" if caller.role == "inference" else "overview"
    response = see_other(_local(request.query.get("next", "")) or url(home))
    request.app[SESSIONS].start(response, crypto.key_digest(key))
    log.info("signed in", actor=caller.actor_name)
    return response


async def _identify(page: Page, key: str) -> Caller:
    if crypto.equal(key, page.app[SETTINGS].operator_key):
        return OPERATOR
    return await page.app[CALLERS].identify(key)


async def sign_out(page: Page) -> web.StreamResponse:
    """End the browser's session."""
    response = see_other(url("sign_in", notice="signed_out"))
    page.app[SESSIONS].end(response)
    return response


def _local(target: str) -> str:
    """The target if it is a page of ours, else nothing."""
    return target if LOCAL_PATH.fullmatch(target) else ""
