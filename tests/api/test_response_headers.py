"""Security headers of every response, and which origins may call."""

import asyncio
import re
from pathlib import Path

import pytest
from support import OPERATOR_KEY, ORGANIZATIONS, make_settings, running

from service.api import CATALOG, SETTINGS
from service.api.response_headers import EXPOSED_HEADERS

pytestmark = pytest.mark.shares_service

APP = "https://app.example.com"
OTHER = "https://evil.example.com"
CHAT = "/v1/chat/completions"
PAGES = re.compile(r"/(?:$|docs|dashboard)")
SECURE = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": (
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


def is_secure(headers):
    assert {name: headers.get(name) for name in SECURE} == SECURE
    assert "Server" not in headers
    assert headers["Cache-Control"] in ("no-store", "no-cache")
    assert not any("aiohttp" in value or "Python" in value for value in headers.values())


@pytest.mark.parametrize("key", ["nobody", "operator", "caller"])
async def test_every_route(service, caller, key):
    """Every route sends the security headers for every key and method; responses to administrators
    and callers are not stored."""
    headers = {
        "nobody": {},
        "operator": {"Authorization": f"Bearer {OPERATOR_KEY}"},
        "caller": caller.headers,
    }[key]
    # Pages have headers of their own: tests/dashboard/test_pages.py.
    routes = {
        (route.method, route.resource.canonical)
        for route in service.app.router.routes()
        if not PAGES.match(route.resource.canonical)
    }
    for method, path in [*sorted(routes), ("GET", "/nothing"), ("OPTIONS", CHAT), ("TRACE", "/x")]:
        async with service.http.request(
            method, path.replace("{id}", caller.organization_id), headers=headers
        ) as response:
            is_secure(response.headers)
            if path != "/openapi.json":
                assert response.headers["Cache-Control"] == "no-store", (method, path)


async def test_streams_and_what_venice_sends(service, caller, upstream):
    """Streams, pictures and failures from Venice have the security headers."""
    async with caller.chat(stream=True) as response:
        await response.read()
        is_secure(response.headers)
    body = {"model": "venice-sd35", "prompt": "x", "return_binary": True}
    async with service.http.post(
        "/v1/image/generate", json=body, headers=caller.headers
    ) as response:
        is_secure(response.headers)
    upstream.faults.push("/chat/completions", "edge_page", status=502)
    async with caller.chat() as response:
        assert response.status == 502
        is_secure(response.headers)


MALFORMED = [
    b"\x16\x03\x01",
    b"GET\r\n\r\n",
    b"GET / HTTP/9\r\n\r\n",
    b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
    b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
    b"GET /v1/models HTTP/1.0\r\n\r\n",
]


@pytest.mark.parametrize("sent", MALFORMED, ids=range(len(MALFORMED)))
async def test_an_invalid_request_is_answered_safely(service, sent):
    """The response to an invalid request has the security headers and does not name the server's
    software."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(service.url.rpartition(":")[2]))
    writer.write(sent)
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode().lower()
    writer.close()
    for name, value in SECURE.items():
        assert f"\r\n{name}: {value}\r\n".lower() in head
    assert "\r\nserver:" not in head
    assert "aiohttp" not in head


class TestOrigins:
    @pytest.fixture(params=[(APP, "http://localhost:3000"), ("*",)], ids=["listed", "any"])
    async def service(self, request, database_address, upstream):
        settings = make_settings(database_address, upstream.url, cors_origins=request.param)
        async with running(settings) as service:
            yield service

    @pytest.fixture
    def is_any(self, service):
        return "*" in service.app[SETTINGS].cors_origins

    @pytest.mark.parametrize(
        "path", [CHAT, "/v1/messages", "/nothing", "/api/v1/models", "/health"]
    )
    async def test_a_preflight_needs_no_key(self, service, is_any, path):
        """A preflight is answered before anything else is checked."""
        names = "authorization, content-type, x-stainless-lang, anthropic-version"
        headers = {
            "Origin": APP,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": names,
        }
        async with service.http.options(path, headers=headers) as response:
            answer = response.headers
            assert response.status == 204
            assert await response.read() == b""
        assert answer["Access-Control-Allow-Origin"] == ("*" if is_any else APP)
        assert "POST" in answer["Access-Control-Allow-Methods"]
        assert answer["Access-Control-Allow-Headers"] == names
        assert "Access-Control-Allow-Credentials" not in answer
        assert is_any or "Origin" in answer.getall("Vary")
        is_secure(answer)

    @pytest.mark.parametrize(
        "origin",
        [
            OTHER,
            "null",
            "http://app.example.com",
            APP + ":444",
            APP + ".evil.com",
            APP + "/",
            APP.upper(),
            "https://xapp.example.com",
            "https://app\u3002example.com",
        ],
    )
    async def test_another_origin_may_do_nothing(self, service, is_any, origin):
        """Another origin is refused, unless all origins are allowed."""
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        for method in ("OPTIONS", "GET"):
            async with service.http.request(method, CHAT, headers=headers) as response:
                allowed = response.headers.get("Access-Control-Allow-Origin")
            assert allowed == ("*" if is_any else None)
            assert is_any or "Origin" in response.headers.getall("Vary")

    async def test_a_response_may_be_read(self, service, upstream):
        """Plain, streamed and failed responses may be read with the headers that clients need."""
        caller = await service.new_caller()
        origin = {"Origin": "http://localhost:3000"}
        caller.headers |= origin
        await service.app[CATALOG].sync()
        for arguments in ({}, {"stream": True}, {"model": "nope"}):
            async with caller.chat(**arguments) as response:
                await response.read()
                assert "Access-Control-Allow-Origin" in response.headers
                exposed = response.headers["Access-Control-Expose-Headers"].split(", ")
                ours = {
                    name
                    for name in map(str.lower, response.headers)
                    if name.startswith("x-r") or name in ("retry-after", "request-id")
                }
                assert ours <= set(map(str.lower, exposed))
        async with service.http.post(CHAT, headers=origin) as response:
            assert response.status == 401
            assert "Access-Control-Allow-Origin" in response.headers
        async with service.http.get(ORGANIZATIONS, headers=origin) as response:
            assert "Access-Control-Allow-Credentials" not in response.headers

    @pytest.mark.parametrize("names", ["a b", "a,,b", "a:b", "x" * 3000])
    async def test_malformed_header_names(self, service, names):
        """Malformed header names in a preflight are not repeated."""
        headers = {
            "Origin": APP,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": names,
        }
        async with service.http.options(CHAT, headers=headers) as response:
            assert "Access-Control-Allow-Headers" not in response.headers

    @pytest.mark.parametrize("bad", [b"bad header", b"Content-Length: x"])
    async def test_an_invalid_request_with_an_origin(self, service, bad):
        """An invalid request is answered as without CORS, whether or not its origin could be
        read."""
        port = int(service.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nOrigin: %b\r\n%b\r\n\r\n" % (APP.encode(), bad))
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        writer.close()
        assert head.split()[1] == b"400"


async def test_no_origins_by_default(service, caller):
    """By default there are no CORS headers, and OPTIONS is not allowed."""
    headers = {"Origin": APP, "Access-Control-Request-Method": "POST", **caller.headers}
    async with service.http.options(CHAT, headers=headers) as response:
        assert response.status == 405
    async with caller.chat() as answer:
        pass
    for name in (*response.headers, *answer.headers):
        assert not name.startswith("Access-Control-")


async def test_the_exposed_headers_are_those_of_the_documents():
    """The headers exposed to pages are those in the documents."""
    text = (Path(__file__).parents[2] / "docs" / "clients.md").read_text()
    for name in ("x-rialto-cost-usd", "x-request-id", "Retry-After"):
        assert name in EXPOSED_HEADERS
        assert f"`{name}`" in text
