"""Keys of an organization: the forms that make, change, rotate and revoke one."""

import html
import re

import pytest
from markupsafe import escape
from reading import rows_of, send, text_of
from support import MODEL, OPERATOR_KEY, ORGANIZATIONS, set_limit
from visits import visiting

from service import api
from service.dashboard.pages import organization_keys as pages

pytestmark = pytest.mark.shares_service

SECRET = re.compile(r">(rk_[A-Za-z0-9_-]{43})<")
HOSTILE = "<img src=x onerror=alert(1)>"


def keys_of(caller):
    """The path of the page of the organization's keys."""
    return f"/dashboard/organizations/{caller.organization_id}/keys"


def path_of(caller):
    """The path of the page of the caller's key."""
    return f"/dashboard/keys/{caller.key_id}"


async def status_of(service, key, path="/v1/limits"):
    """Return the status that a request with the key gets."""
    async with service.http.get(path, headers={"Authorization": f"Bearer {key}"}) as response:
        return response.status


async def found(service, caller, name):
    """Return the organization's key of this name as the API has it."""
    path = f"{ORGANIZATIONS}/{caller.organization_id}/keys"
    _, body = await service.operate("GET", path)
    (key,) = (key for key in body["keys"] if key["name"] == name)
    return key


async def newest_event(service, caller):
    """Return the newest audit event of the organization."""
    path = f"{ORGANIZATIONS}/{caller.organization_id}/audit-events?limit=1"
    return (await service.operate("GET", path))[1]["events"][0]


async def new_administrator(service, caller, **key):
    """Make an administrator's key of the caller's organization; return it."""
    path = f"{ORGANIZATIONS}/{caller.organization_id}/keys"
    body = {"name": "admin", "role": "admin", **key}
    return (await service.operate("POST", path, json=body))[1]


async def test_creating_a_key(service, caller):
    """A new key is shown once, with the lines for the SDKs, and works at once. The event names who
    made it."""
    admin = await new_administrator(service, caller)
    async with visiting(service, admin["key"]) as visitor:
        page = keys_of(caller)
        status, text, headers = await send(visitor, page, f"{page}/create", name=HOSTILE)
        assert status == 200
        assert headers["Cache-Control"] == "no-store"
        secret = SECRET.search(text)[1]
        assert text.count(secret) >= 5
        assert "never shown again" in text
        assert HOSTILE not in text
        assert await status_of(service, secret) == 200
        key = await found(service, caller, HOSTILE)
        assert key["prefix"] == secret[:10]
        assert f'href="/dashboard/keys/{key["id"]}"' in text
        event = await newest_event(service, caller)
        assert event["action"] == "api_key.create"
        assert event["actor"] == f"api_key:{admin['id']}"
        for path in (page, f"/dashboard/keys/{key['id']}"):
            _, text = await visitor.get(path)
            assert secret not in text
            assert HOSTILE not in text
            assert str(escape(HOSTILE)) in text


async def test_creating_a_restricted_key(service, caller):
    """Expiry, models, addresses and endpoints of the form are those of the key."""
    page = keys_of(caller)
    async with visiting(service, OPERATOR_KEY) as visitor:
        status, text, _ = await send(
            visitor,
            page,
            f"{page}/create",
            name="narrow",
            expires_at="2100-01-01T08:30",
            models=f"{MODEL}, venice-uncensored\r\n",
            ip_allow_list="192.0.2.0/24\r\n2001:db8::/32",
            allowed_endpoints="/v1/chat/completions",
        )
    assert status == 200, text_of(text)
    key = await found(service, caller, "narrow")
    assert key["expires_at"].startswith("2100-01-01T08:30:00")
    assert key["models"] == [MODEL, "venice-uncensored"]
    assert key["ip_allow_list"] == ["192.0.2.0/24", "2001:db8::/32"]
    assert key["allowed_endpoints"] == ["/v1/chat/completions"]


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"name": ""}, "name", "must be 1 to 200 characters"),
        ({"role": "nosuch"}, "role", "must be one of"),
        ({"role": "operator"}, "role", "operator"),
        ({"expires_at": "2020-01-01T00:00"}, "expires_at", "future"),
        ({"expires_at": "soon"}, "expires_at", "must be"),
        ({"models": "ä"}, "models", "printable ASCII"),
        ({"ip_allow_list": "192.0.2.0/33"}, "ip_allow_list", "ip_allow_list"),
        ({"allowed_endpoints": "/v1/chat/completion"}, "allowed_endpoints", "Similar paths"),
    ],
)
async def test_a_wrong_field_is_named(service, caller, fields, field, reason):
    """What is wrong stands beside its field, what was typed stays, and no key is made."""
    page = keys_of(caller)
    async with visiting(service, OPERATOR_KEY) as visitor:
        stated = {"name": "typed", **fields}
        status, text, _ = await send(visitor, page, f"{page}/create", **stated)
        assert 400 <= status < 500
        assert reason in html.unescape(text)
        assert re.search(rf'name="{field}"[^>]*aria-invalid="true"', text), text_of(text)
        if field not in ("name", "role"):
            assert str(escape(fields[field])) in text
            assert 'value="typed"' in text
        _, text = await visitor.get(page)
        assert [row["Name"] for row in rows_of(text, "Begins with")] == ["acme"]


async def test_an_administrator_cannot_make_a_stronger_key(service, caller):
    """A key that may do more than the administrator's own is refused, as over the API."""
    admin = await new_administrator(service, caller, models=[MODEL])
    page = keys_of(caller)
    async with visiting(service, admin["key"]) as visitor:
        for fields in ({"models": ""}, {"models": "venice-uncensored"}, {"role": "operator"}):
            stated = {"name": "strong", **fields}
            status, text, _ = await send(visitor, page, f"{page}/create", **stated)
            assert status in (403, 409), text_of(text)
        status, _, _ = await send(visitor, page, f"{page}/create", name="weak", models=MODEL)
        assert status == 200


async def test_the_list_is_searched(service, monkeypatch):
    """Keys are found by a part of the name or by how they begin, and pages hold each once."""
    caller = await service.new_caller("searched")
    path = f"{ORGANIZATIONS}/{caller.organization_id}/keys"
    for name in ("alpha one", "alpha two", "beta"):
        await service.operate("POST", path, json={"name": name})
    page = keys_of(caller)
    async with visiting(service, OPERATOR_KEY) as visitor:
        for query, names in (
            ("q=ALPHA", ["alpha one", "alpha two"]),
            (f"q={caller.key[:10]}", ["searched"]),
            ("q=nosuch", []),
        ):
            _, text = await visitor.get(f"{page}?{query}")
            assert [row["Name"] for row in rows_of(text, "Begins with")] == names
        monkeypatch.setattr(pages, "PAGE", 2)
        listed, path = [], page
        while path:
            _, text = await visitor.get(path)
            listed += [row["Name"] for row in rows_of(text, "Begins with")]
            link = re.search(r'href="([^"]*)" rel="next"', text)
            path = html.unescape(link[1]) if link else ""
        assert listed == ["searched", "alpha one", "alpha two", "beta"]


async def test_the_page_of_a_key(service, caller):
    """The page has what the key may do, its limits and what it spent."""
    await set_limit(caller, unit="usd", period="month", ceiling="5", of_key=True)
    async with caller.chat() as response:
        await response.read()
    async with visiting(service, OPERATOR_KEY) as visitor:
        for path in (path_of(caller), f"/dashboard/keys/{caller.key[:10]}"):
            status, text = await visitor.get(path)
            assert status == 200
            assert caller.key not in text
            assert caller.key[:10] in text
            (limit,) = rows_of(text, "Of the limit")
            assert limit["Binds"] == "key acme"
            (row,) = rows_of(text, "Model")
            assert (row["Model"], row["Calls"]) == (MODEL, "1")
            for link in set(re.findall(r'href="(/dashboard/requests\?[^"]*from=[^"]*)"', text)):
                _, listed = await visitor.get(html.unescape(link))
                assert len(rows_of(listed, "Took")) in (0, 1)


async def test_changing_a_key(service, caller):
    """The form changes what differs and nothing else; sent unchanged it changes nothing."""
    page = path_of(caller)
    async with visiting(service, OPERATOR_KEY) as visitor:
        before = await newest_event(service, caller)
        status, _, headers = await send(visitor, page, f"{page}/change")
        assert status == 303
        assert await newest_event(service, caller) == before
        status, _, headers = await send(
            visitor,
            page,
            f"{page}/change",
            name="renamed",
            models=f"{MODEL}\r\n",
            expires_at="2100-01-01T00:00",
        )
        assert status == 303
        _, text = await visitor.get(headers["Location"])
        assert "The key is changed." in text
        event = await newest_event(service, caller)
        assert event["action"] == "api_key.change"
        assert set(event["detail"]) == {"name", "models", "expires_at"}
        key = await found(service, caller, "renamed")
        assert key["models"] == [MODEL]
        status, _, _ = await send(visitor, page, f"{page}/change", name="again")
        assert status == 303
        assert set((await newest_event(service, caller))["detail"]) == {"name"}
        status, _, _ = await send(visitor, page, f"{page}/change", models="", expires_at="")
        assert status == 303
        key = await found(service, caller, "again")
        assert key["models"] is None
        assert key["expires_at"] is None


async def test_a_wrong_change_is_named(service, caller):
    """What is wrong stands beside its field, the form is open, and what was typed stays."""
    page = path_of(caller)
    async with visiting(service, OPERATOR_KEY) as visitor:
        status, text, _ = await send(
            visitor, page, f"{page}/change", name="typed", ip_allow_list="nosuch"
        )
        assert status == 400
        assert re.search(r'name="ip_allow_list"[^>]*aria-invalid="true"', text)
        assert 'value="typed"' in text
        assert '<details class="disclosed" open>' in text
        assert "Key of" in text


async def test_rotating_a_key(service, caller):
    """The new secret is shown once; the old one works during the overlap, and not without one."""
    page = path_of(caller)
    async with visiting(service, OPERATOR_KEY) as visitor:
        status, text, _ = await send(visitor, page, f"{page}/rotate", overlap_seconds="3600")
        assert status == 200
        first = SECRET.search(text)[1]
        assert "works for 1 h more" in text_of(text)
        assert await status_of(service, caller.key) == 200
        assert await status_of(service, first) == 200
        _, text = await visitor.get(page)
        assert "Old secret works until" in text
        assert first not in text
        status, text, _ = await send(visitor, page, f"{page}/rotate", overlap_seconds="0")
        second = SECRET.search(text)[1]
        assert await status_of(service, second) == 200
        assert await status_of(service, first) == 401
        assert await status_of(service, caller.key) == 401
    event = await newest_event(service, caller)
    assert event["action"] == "api_key.rotate"
    assert event["detail"]["overlap_seconds"] == 0


async def test_revoking_a_key(service, caller):
    """A key is revoked only with the confirmation, and then has no forms."""
    page = path_of(caller)
    async with visiting(service, OPERATOR_KEY) as visitor:
        _, before = await visitor.get(page)
        token = re.search(r'name="csrf" value="([^"]+)"', before)[1]
        status, text, _ = await visitor.post(f"{page}/revoke", {"csrf": token})
        assert status == 400
        assert "cannot be undone" in text
        assert await status_of(service, caller.key) == 200
        status, _, headers = await visitor.post(
            f"{page}/revoke", {"csrf": token, "is_confirmed": "true"}
        )
        assert status == 303
        assert await status_of(service, caller.key) == 401
        _, text = await visitor.get(headers["Location"])
        assert "Every replica refuses its next call." in text
        assert "/revoke" not in text
        assert "/rotate" not in text
    assert (await newest_event(service, caller))["action"] == "api_key.revoke"


async def test_a_revoked_key_is_not_rotated(service, caller):
    """A form that was open while the key was revoked is refused with the reason."""
    page = path_of(caller)
    async with visiting(service, OPERATOR_KEY) as visitor:
        token = await visitor.token(page)
        await service.operate("DELETE", f"/admin/v1/keys/{caller.key_id}")
        fields = {"csrf": token, "overlap_seconds": "0"}
        status, text, _ = await visitor.post(f"{page}/rotate", fields)
        assert status == 409
        assert "revoked" in text
        assert SECRET.search(text) is None


async def test_a_key_of_role_operator_is_made_in_the_operators_organization(service):
    """The operator's own organization has keys of role operator alone."""
    page = "/dashboard/organizations/00000000-0000-0000-0000-000000000000/keys"
    async with visiting(service, OPERATOR_KEY) as visitor:
        status, text, _ = await send(
            visitor, page, f"{page}/create", name="second operator", role="operator"
        )
        assert status == 200
        secret = SECRET.search(text)[1]
        assert "OpenAI" not in text
    async with visiting(service, secret) as visitor:
        assert (await visitor.get("/dashboard/operations"))[0] == 200


async def test_no_secret_reaches_the_log(service, caller, capsys):
    """A secret that a page shows is in no log line."""
    page = path_of(caller)
    async with visiting(service, OPERATOR_KEY) as visitor:
        _, text, _ = await send(visitor, page, f"{page}/rotate", overlap_seconds="0")
    secret = SECRET.search(text)[1]
    await service.app[api.RECORDER].write()
    captured = capsys.readouterr()
    assert secret not in captured.out + captured.err
