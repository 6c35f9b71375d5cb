"""Changes are made by forms of our own pages only, in the session that the form was made for."""

import pytest
from support import OPERATOR_KEY
from visits import OWN, visiting

from service.dashboard.routes import ROUTES

pytestmark = pytest.mark.shares_service

FORMS = [route for route in ROUTES if route.is_form and route.roles]
SIGN_OUT = "/dashboard/sign-out"
NO_ID = "00000000-0000-7000-8000-000000000000"


def path_of(route):
    """The path of a route with ids that belong to nothing."""
    return route.path.replace("{id}", NO_ID).replace("{request_id}", "nothing")


@pytest.mark.parametrize("route", FORMS, ids=lambda route: route.path)
@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {},
    ],
    ids=["cross-site", "same-site", "none", "other-origin", "null", "nothing"],
)
async def test_a_form_of_another_origin_is_refused(service, route, headers):
    """A form is refused unless the browser states that a page of ours sent it, even with the
    token of the session."""
    async with visiting(service, OPERATOR_KEY) as visitor:
        token = await visitor.token("/dashboard/operations")
        status, text, _ = await visitor.post(path_of(route), {"csrf": token}, headers)

        assert status == 403
        assert "own" in text
        assert visitor.cookie is not None


@pytest.mark.parametrize("route", FORMS, ids=lambda route: route.path)
async def test_a_form_needs_the_token_of_its_session(service, route):
    """A form without a token, or with that of another session, changes nothing."""
    key = OPERATOR_KEY
    if "operator" not in route.roles:
        key = (await service.new_caller(role=min(route.roles))).key
    async with visiting(service, OPERATOR_KEY) as other:
        others_token = await other.token("/dashboard/operations")
    async with visiting(service, key) as visitor:
        for fields in ({}, {"csrf": ""}, {"csrf": "x"}, {"csrf": others_token}):
            status, text, _ = await visitor.post(path_of(route), fields)

            assert status == 403, fields
            assert "session" in text
        assert visitor.cookie is not None


@pytest.mark.parametrize("route", FORMS, ids=lambda route: route.path)
async def test_a_form_needs_a_session(service, route):
    """Without a session a form leads to the sign-in."""
    async with visiting(service) as visitor:
        status, _, headers = await visitor.post(path_of(route), {"csrf": "x"})

    assert status == 303
    assert headers["Location"].startswith("/dashboard/sign-in")


async def test_the_origin_is_compared_where_a_browser_states_no_site(service):
    """Over plain HTTP the origin of the form must be the host that it is sent to."""
    host = service.url.partition("//")[2]
    async with visiting(service, OPERATOR_KEY) as visitor:
        token = await visitor.token("/dashboard/operations")
        status, _, _ = await visitor.post(SIGN_OUT, {"csrf": token}, {"Origin": f"http://{host}"})

    assert status == 303


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b'{"csrf": "x"}', "application/json", 400),
        (b"csrf=%FF%FE", "application/x-www-form-urlencoded", 400),
        (b"csrf=x&a=%00", "application/x-www-form-urlencoded", 400),
        (b"&".join(b"a%d=x" % number for number in range(300)), None, 400),
        (b"a=" + b"x" * 100_000, None, 413),
        (b"", None, 403),
    ],
    ids=["json", "bytes", "nul", "fields", "large", "empty"],
)
async def test_odd_forms_are_refused(service, body, content_type, status):
    """What is no small form is refused with a page that names the rule."""
    form = "application/x-www-form-urlencoded"
    headers = {**OWN, "Content-Type": content_type or form}
    async with visiting(service, OPERATOR_KEY) as visitor:
        answered, text, answer = await visitor.post(SIGN_OUT, body, headers)

    assert answered == status
    assert answer["Content-Type"].startswith("text/html")
    assert "Traceback" not in text


async def test_a_form_is_of_its_method_alone(service):
    """A form cannot be sent by a link."""
    async with visiting(service, OPERATOR_KEY) as visitor:
        token = await visitor.token("/dashboard/operations")
        await visitor.get(f"{SIGN_OUT}?csrf={token}")

        assert visitor.cookie is not None
        assert (await visitor.get("/dashboard/operations"))[0] == 200
