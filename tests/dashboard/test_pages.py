"""Every page answers, for everybody who may open it, safely and in time."""

import html
import re

import pytest
from furnished import HOSTILE, HOSTILE_MODEL
from support import OPERATOR_KEY
from visits import visiting

from service.api import LANES
from service.dashboard import page as pages
from service.dashboard.page import OPERATOR_PAGES
from service.dashboard.routes import ROUTES
from service.dashboard.serving import PAGE_HEADERS

pytestmark = pytest.mark.shares_service

ROLES = ("operator", "admin", "inference")
SHOWN = [route for route in ROUTES if not route.is_form and route.page != "missing"]
OPENED = [(role, route) for route in SHOWN for role in ROLES if role in route.roles]
MAX_PAGE_BYTES = 150_000
LINK = re.compile(r'(?:href|src|action)="([^"]*)"')


def name_of(value):
    """The id of a parameter."""
    return value if isinstance(value, str) else value.page


@pytest.fixture
async def shared_service(module_service, furnished_service):
    """The furnished service stays though models were added: no test here changes anything."""
    return furnished_service.service


async def follow(visitor, path):
    """Return the status, the text and the headers of a page, redirects followed."""
    async with visitor.http.get(path) as response:
        return response.status, await response.text(), response.headers


@pytest.mark.parametrize(("role", "route"), OPENED, ids=name_of)
async def test_a_page_answers(furnished_service, role, route):
    """A page answers 200 for each role that may open it, with the headers of pages, whole parts,
    and names that are texts."""
    key = furnished_service.key_of(role)
    async with visiting(furnished_service.service, key) as visitor:
        status, text, headers = await follow(visitor, furnished_service.url(route.page))

    assert status == 200, text
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    for name, value in PAGE_HEADERS.items():
        assert headers[name] == value
    assert "not available now" not in text
    assert "<script>alert" not in text
    assert "onerror=alert(2)>" not in text
    assert "49" not in re.findall(r"&#39;&#34;(\d+)", text)
    assert "style=" not in text
    assert not re.search(r"\son\w+=\"", text)
    assert len(text.encode()) < MAX_PAGE_BYTES
    assert not re.search(r">\s*None\s*<", text)


def test_policies_allow_no_inline_code():
    """The policy of pages has no exception."""
    policy = PAGE_HEADERS["Content-Security-Policy"]

    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy
    assert "*" not in policy


@pytest.mark.parametrize("role", ROLES)
async def test_links_lead_somewhere(furnished_service, role):
    """Every link of every page leads to a page that answers, and no page loads anything from
    another host."""
    broken, seen = {}, set()
    async with visiting(furnished_service.service, furnished_service.key_of(role)) as visitor:
        waiting = ["/dashboard", "/docs"]
        while waiting:
            path = waiting.pop()
            if path in seen or len(seen) > 400:
                continue
            seen.add(path)
            status, text, headers = await follow(visitor, path)
            if status != 200:
                broken[path] = status
                continue
            if not headers["Content-Type"].startswith("text/html"):
                continue
            for link in map(html.unescape, LINK.findall(text)):
                assert link.startswith(("/", "#")), (path, link)
                target = link.partition("#")[0]
                if target and "sign-out" not in target and "export" not in target:
                    waiting.append(target)

    # A form's action has no page of its own.
    forms = {route.path for route in ROUTES if route.is_form}
    patterns = [re.compile(re.sub(r"{[^}]*}", "[^/]+", path)) for path in forms]
    broken = {
        path: status
        for path, status in broken.items()
        if not any(pattern.fullmatch(path.partition("?")[0]) for pattern in patterns)
    }
    assert broken == {}
    assert len(seen) > 5


async def test_hostile_names_are_shown_as_they_are(furnished_service):
    """A name with markup is shown as text, not left out."""
    texts = []
    async with visiting(furnished_service.service, furnished_service.key_of("operator")) as visitor:
        for route in SHOWN:
            if "operator" in route.roles:
                _, text, _ = await follow(visitor, furnished_service.url(route.page))
                texts.append(html.unescape(re.sub(r"<[^>]*>", "", text)))

    assert any(HOSTILE in text for text in texts)
    assert any(HOSTILE_MODEL in text for text in texts)


async def test_static_files_are_kept(furnished_service):
    """Stylesheet and script have the digest of their content in the URL and are kept for long."""
    async with visiting(furnished_service.service) as visitor:
        _, text = await visitor.get("/dashboard/sign-in")
        files = [link for link in LINK.findall(text) if "/static/" in link]
        weight = len(text.encode())
        for link in files:
            async with visitor.http.get(link) as answer:
                assert answer.status == 200
                assert "immutable" in answer.headers["Cache-Control"]
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                weight += len(await answer.read())
        stale = re.sub(r"static/\w+/", "static/000000000000/", files[0])
        async with visitor.http.get(stale) as answer:
            assert answer.status == 404
        async with visitor.http.get(files[0].rpartition("/")[0] + "/..%2Fstate.py") as answer:
            assert answer.status == 404

    assert {link.rpartition(".")[2] for link in files} == {"css", "js", "svg"}
    assert weight < 60_000


async def test_a_missing_page_is_a_page(furnished_service):
    """An unknown path below the dashboard is answered with a page that leads on."""
    async with visiting(furnished_service.service, furnished_service.key_of("operator")) as visitor:
        for path in ("/dashboard/nothing", "/dashboard/keys/x/y/z"):
            status, text, _ = await follow(visitor, path)
            assert status == 404
            assert "There is no such page." in text
        status, _, _ = await follow(visitor, "/dashboard/")
        assert status == 200


async def test_the_reference_shows_every_operation(furnished_service):
    """The page of the API has each operation of the description, each with a page that is small."""
    async with visiting(furnished_service.service) as visitor:
        async with visitor.http.get("/openapi.json") as answer:
            paths = (await answer.json())["paths"]
        _, text, _ = await follow(visitor, "/docs")
        names = {
            described["operationId"]
            for item in paths.values()
            for method, described in item.items()
            if method != "$ref"
        }
        for name in sorted(names):
            assert f'href="/docs/{name}"' in text
            status, page, _ = await follow(visitor, f"/docs/{name}")
            assert status == 200
            assert len(page.encode()) < MAX_PAGE_BYTES, name
        assert (await follow(visitor, "/docs/nosuch"))[0] == 404


async def test_a_slow_part_does_not_fail_the_page(furnished_service, monkeypatch):
    """While somebody else has the dashboard's share of the database, a page comes in time, and the
    parts that it lacks are named."""
    monkeypatch.setattr(pages, "PART_TIMEOUT_S", 0.2)
    monkeypatch.setattr(pages, "PAGE_TIMEOUT_S", 0.5)
    service = furnished_service.service
    lane = service.app[LANES].of(OPERATOR_PAGES)
    async with visiting(service, furnished_service.key_of("operator")) as visitor:
        async with lane.transaction(), lane.reading():
            status, text, _ = await follow(visitor, "/dashboard")
            assert status == 200
            assert "not available now" in text
            async with furnished_service.caller.chat("still served") as response:
                assert response.status in (200, 429)
        _, text, _ = await follow(visitor, "/dashboard")
        assert "not available now" not in text


async def test_the_overview_loads_its_calls_in_flight_alone(service):
    """The script asks for one part, and the reports of the others are not made for it."""
    async with visiting(service, OPERATOR_KEY) as visitor:
        status, whole = await visitor.get("/dashboard")
        assert (status, "Spent today" in whole, 'id="running-calls"' in whole) == (200, True, True)
        status, part = await visitor.get("/dashboard", **{"X-Part": "running-calls"})
    assert (status, "Spent today" in part, 'id="running-calls"' in part) == (200, False, True)
