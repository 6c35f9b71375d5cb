"""A browser without a window, for what needs no rendering: cookies, forms, redirects."""

import contextlib
import re

import aiohttp

from service.dashboard import attempts
from service.dashboard.sessions import COOKIE
from service.dashboard.state import ATTEMPTS

TOKEN = re.compile(r'name="csrf" value="([^"]+)"')
OWN = {"Sec-Fetch-Site": "same-origin"}
"""What a browser states with the forms of a page of ours."""


class Visitor:
    """Somebody with cookies. ``headers`` are sent with each request."""

    def __init__(self, http):
        self.http = http
        self.headers = {}

    @property
    def cookie(self):
        """The session's cookie, or None."""
        for cookie in self.http.cookie_jar:
            if cookie.key == COOKIE:
                return cookie
        return None

    async def get(self, path, **headers):
        """Return the status and the text of a page, without following redirects."""
        async with self.http.get(
            path, allow_redirects=False, headers={**self.headers, **headers}
        ) as response:
            return response.status, await response.text()

    async def post(self, path, fields, headers=None):
        """Send a form as a page of ours does; return the status, the text and the headers."""
        headers = {**self.headers, **(OWN if headers is None else headers)}
        async with self.http.post(
            path, data=fields, allow_redirects=False, headers=headers
        ) as response:
            return response.status, await response.text(), response.headers

    async def sign_in(self, key, back=""):
        """Sign in with a key."""
        return await self.post(f"/dashboard/sign-in?next={back}", {"key": key})

    async def token(self, path="/docs"):
        """Return the token of the session's forms."""
        _, text = await self.get(path)
        return TOKEN.search(text)[1]


def forget_attempts(service):
    """Give everybody all attempts to sign in again."""
    counted = service.app[ATTEMPTS]
    counted._of.clear()
    counted._all.left = attempts.ATTEMPTS_OF_ALL


@contextlib.asynccontextmanager
async def visiting(service, key=None):
    """A visitor of the service, who signs in with the key."""
    # The service is at an IP address, whose cookies aiohttp keeps only if asked to.
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(service.url, cookie_jar=jar) as http:
        visitor = Visitor(http)
        if key is not None:
            forget_attempts(service)
            status, text, _ = await visitor.sign_in(key)
            assert status == 303, text
        yield visitor
