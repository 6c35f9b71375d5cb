"""Signing in, sessions, and what ends them."""

import pytest
from aiohttp import web
from support import ENCRYPTION_KEY, OPERATOR_KEY, make_settings, running
from visits import forget_attempts, visiting

from service.api import DATABASE, SETTINGS
from service.dashboard import attempts, sessions
from service.dashboard.state import SESSIONS

pytestmark = pytest.mark.shares_service

PAGE = "/dashboard/operations"
OVERVIEW = "/dashboard"


@pytest.fixture(autouse=True)
def _fresh_attempts(service):
    """Each test begins with all attempts."""
    forget_attempts(service)


async def test_the_operator_signs_in_and_out(service):
    """The operator's key opens the dashboard until the operator signs out."""
    async with visiting(service) as visitor:
        status, _, headers = await visitor.sign_in(OPERATOR_KEY)
        assert status == 303
        assert headers["Location"] == OVERVIEW
        assert (await visitor.get(PAGE))[0] == 200
        token = await visitor.token(PAGE)
        status, _, headers = await visitor.post("/dashboard/sign-out", {"csrf": token})
        assert status == 303
        assert headers["Location"].startswith("/dashboard/sign-in")
        assert visitor.cookie is None
        assert (await visitor.get(PAGE))[0] == 303


@pytest.mark.parametrize(("role", "home"), [("inference", "/dashboard/own"), ("admin", OVERVIEW)])
async def test_each_role_has_a_first_page(service, role, home):
    """A key signs in whatever its role, and its page comes first."""
    caller = await service.new_caller(role=role)
    async with visiting(service) as visitor:
        status, _, headers = await visitor.sign_in(caller.key)

    assert (status, headers["Location"]) == (303, home)


@pytest.mark.parametrize("role", ["inference", "admin"])
async def test_pages_of_the_operator_are_closed_to_others(service, role):
    """A key that is no operator's cannot open the operator's pages."""
    caller = await service.new_caller(role=role)
    async with visiting(service, caller.key) as visitor:
        status, text = await visitor.get(PAGE)

    assert status == 403
    assert f"role {role}" in text


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("", "Enter a key."),
        ("wrong", "malformed"),
        (f"{OPERATOR_KEY}x", "malformed"),
        ("rk_" + "a" * 43, "not known"),
        ("rk_" + "ä" * 43, "malformed"),
        ("\udcff", "UTF-8"),
    ],
    ids=["none", "malformed", "nearly", "unknown", "letters", "bytes"],
)
async def test_a_wrong_key_is_refused(service, key, reason):
    """A wrong key opens nothing, and the page has the reason and not the key."""
    async with visiting(service) as visitor:
        body = b"key=%FF" if key == "\udcff" else {"key": key}
        headers = {"Sec-Fetch-Site": "same-origin"}
        if isinstance(body, bytes):
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        status, text, _ = await visitor.post("/dashboard/sign-in", body, headers)

        assert status in (400, 401)
        assert reason in text
        assert not key or key not in text
        assert visitor.cookie is None


async def test_a_revoked_key_is_refused(service):
    """A key that is out of force cannot sign in."""
    caller = await service.new_caller()
    await service.operate("DELETE", f"/admin/v1/keys/{caller.key_id}")
    async with visiting(service) as visitor:
        status, text, _ = await visitor.sign_in(caller.key)

    assert status == 401
    assert "revoked" in text


@pytest.mark.parametrize(
    ("lists", "reason"),
    [
        ({"allowed_endpoints": ["/v1/chat/completions"]}, "used for /dashboard"),
        ({"ip_allow_list": ["192.0.2.0/24"]}, "used from 127.0.0.1"),
        ({"allowed_endpoints": ["/dashboard"], "ip_allow_list": ["127.0.0.0/8"]}, None),
    ],
    ids=["endpoints", "addresses", "allowed"],
)
async def test_a_key_is_held_to_its_lists(service, lists, reason):
    """A key that may not be used for the dashboard, or not from here, cannot sign in; one that
    gets such a list later has no pages any more."""
    caller = await service.new_caller(role="admin", **lists)
    async with visiting(service) as visitor:
        status, text, _ = await visitor.sign_in(caller.key)
        assert (status == 303) is (reason is None)
        assert reason is None or reason in text
    caller = await service.new_caller(role="admin")
    async with visiting(service, caller.key) as visitor:
        await service.operate("PATCH", f"/admin/v1/keys/{caller.key_id}", json=lists)
        status, text = await visitor.get(OVERVIEW)
        assert status == (200 if reason is None else 403)
        assert reason is None or reason in text


async def test_the_cookie_is_for_this_page_alone(service):
    """Scripts cannot read the cookie, other sites' requests lack it, and it holds no key."""
    async with visiting(service, OPERATOR_KEY) as visitor:
        cookie = visitor.cookie

        assert cookie["httponly"]
        assert cookie["samesite"] == "Strict"
        assert cookie["path"] == "/dashboard"
        assert cookie["max-age"] == str(12 * 3600)
        assert OPERATOR_KEY not in cookie.value


async def test_the_cookie_needs_tls_in_production():
    """In production browsers send the cookie over TLS only."""
    for is_secure in (True, False):
        response = web.Response()
        sessions.Sessions([ENCRYPTION_KEY], is_secure=is_secure).start(response, b"x" * 32)

        assert bool(response.cookies[sessions.COOKIE]["secure"]) is is_secure


async def test_a_session_ends_with_its_key(service):
    """The next request after the key is revoked finds no session."""
    caller = await service.new_caller(role="admin")
    async with visiting(service, caller.key) as visitor:
        assert (await visitor.get(OVERVIEW))[0] == 200
        await service.operate("DELETE", f"/admin/v1/keys/{caller.key_id}")
        status, _ = await visitor.get(OVERVIEW)

        assert status == 303
        assert visitor.cookie is None


async def test_a_key_that_is_revoked_elsewhere_ends_the_session(service):
    """A key that another process revoked ends the session though nothing announced it."""
    caller = await service.new_caller(role="admin")
    async with visiting(service, caller.key) as visitor:
        assert (await visitor.get(OVERVIEW))[0] == 200
        database = service.app[DATABASE]
        await database.fetch(
            "UPDATE public.api_keys SET revoked_at = now() WHERE id = $1 RETURNING id",
            caller.key_id,
        )
        assert (await visitor.get(OVERVIEW))[0] == 303


async def test_an_expired_key_ends_the_session(service):
    """A key that expires ends its session."""
    caller = await service.new_caller(role="admin")
    async with visiting(service, caller.key) as visitor:
        database = service.app[DATABASE]
        await database.fetch(
            "UPDATE public.api_keys SET expires_at = now() WHERE id = $1 RETURNING id",
            caller.key_id,
        )
        assert (await visitor.get(OVERVIEW))[0] == 303


async def test_another_operator_key_ends_the_session(service):
    """A session of the operator's key ends when the key of the settings is another one."""
    async with visiting(service, OPERATOR_KEY) as visitor:
        cookie = visitor.cookie.value
    address, url = service.app[SETTINGS].database, "http://127.0.0.1:1"
    for operator_key, status in ((OPERATOR_KEY, 200), ("another-operator-key-0123456789", 303)):
        settings = make_settings(address, url, operator_key=operator_key)
        async with running(settings, knows_models=False) as other, visiting(other) as visitor:
            assert (await visitor.get(PAGE, Cookie=f"{sessions.COOKIE}={cookie}"))[0] == status


async def test_a_rotated_encryption_key_keeps_sessions(service):
    """A cookie that an older key of ENCRYPTION_KEY sealed still opens; a foreign one does not."""
    async with visiting(service, OPERATOR_KEY) as visitor:
        cookie = visitor.cookie.value
    newest = "newest-encryption-key-0123456789abcdef"
    for keys, is_open in (((newest, ENCRYPTION_KEY), True), ((newest,), False)):
        read = sessions.Sessions(keys, is_secure=False).read(Cookies(cookie))
        assert (read is not None) is is_open


class Cookies:
    """A request with a cookie."""

    def __init__(self, value):
        self.cookies = {sessions.COOKIE: value}


async def test_a_session_ends_after_twelve_hours(service, monkeypatch):
    """A cookie that is too old opens nothing."""
    async with visiting(service, OPERATOR_KEY) as visitor:
        value = visitor.cookie.value
    kept = service.app[SESSIONS]
    started_at = kept.read(Cookies(value)).started_at
    for age_s, is_open in ((12 * 3600 - 5, True), (12 * 3600 + 5, False)):
        monkeypatch.setattr(sessions.time, "time", lambda age_s=age_s: started_at + age_s)
        assert (kept.read(Cookies(value)) is not None) is is_open


@pytest.mark.parametrize(
    ("back", "location"),
    [
        ("/dashboard/operations", "/dashboard/operations"),
        ("/dashboard/requests%3Fmodel%3Dx", "/dashboard/requests?model=x"),
        ("https://evil.example/", OVERVIEW),
        ("//evil.example/dashboard", OVERVIEW),
        ("/dashboard%0d%0aSet-Cookie:x=y", OVERVIEW),
        ("/dashboardx", OVERVIEW),
        ("/v1/models", OVERVIEW),
        ("/dashboard%5C@evil.example", OVERVIEW),
    ],
)
async def test_signing_in_leads_back_to_own_pages_only(service, back, location):
    """The page that asked for a session comes next; a page of another host never does."""
    async with visiting(service) as visitor:
        _, _, headers = await visitor.sign_in(OPERATOR_KEY, back)

    assert headers["Location"] == location


async def test_a_page_without_a_session_leads_to_the_sign_in(service):
    """Without a session a page sends the browser to the sign-in, which knows where to go on."""
    async with visiting(service) as visitor:
        async with visitor.http.get("/dashboard/requests?model=x", allow_redirects=False) as answer:
            location = answer.headers["Location"]
        _, text = await visitor.get(location)

    assert location == "/dashboard/sign-in?next=%2Fdashboard%2Frequests%3Fmodel%3Dx"
    assert 'action="/dashboard/sign-in?next=%2Fdashboard%2Frequests%3Fmodel%3Dx"' in text


async def test_a_link_of_another_site_opens_the_page(service):
    """A browser keeps the cookie back on a link of another site. The page then asks for itself
    again, with the cookie."""
    foreign = {"Sec-Fetch-Site": "cross-site"}
    async with visiting(service, OPERATOR_KEY) as visitor:
        async with visiting(service) as stranger:
            path = "/dashboard/sign-in?next=%2Fdashboard%2Foperations"
            status, text = await stranger.get(path, **foreign)
        assert status == 200
        again = "/dashboard/sign-in?next=%2Fdashboard%2Foperations&again=1"
        assert again.replace("&", "&amp;") in text
        async with visitor.http.get(again, allow_redirects=False) as answer:
            assert answer.headers["Location"] == PAGE
        async with visiting(service) as stranger:
            assert 'name="key"' in (await stranger.get(again))[1]


async def test_attempts_are_bounded(service):
    """After too many attempts even the right key has to wait, and the answer states how long."""
    async with visiting(service) as visitor:
        for _ in range(attempts.ATTEMPTS_OF_ADDRESS):
            assert (await visitor.sign_in("wrong"))[0] == 401
        status, text, headers = await visitor.sign_in(OPERATOR_KEY)

    assert status == 429
    assert "too many attempts" in text
    assert 1 <= int(headers["Retry-After"]) <= 60


async def test_a_large_form_is_refused(service):
    """A sign-in of megabytes is not read."""
    async with visiting(service) as visitor:
        status, _, _ = await visitor.sign_in("x" * 1_000_000)

    assert status == 413


async def test_browsers_are_led_to_the_dashboard(service):
    """A browser that asks for the first page gets the dashboard; programs get their 404."""
    async with visiting(service) as visitor:
        async with visitor.http.get(
            "/", headers={"Accept": "text/html,*/*"}, allow_redirects=False
        ) as answer:
            assert (answer.status, answer.headers["Location"]) == (303, OVERVIEW)
        for method in ("GET", "POST", "PUT", "DELETE"):
            async with visitor.http.request(method, "/") as answer:
                assert answer.status == 404
                assert (await answer.json())["error"]["code"] == "not_found"
        async with visitor.http.get("/nothing", headers={"Accept": "text/html"}) as answer:
            assert (await answer.json())["error"]["code"] == "not_found"
