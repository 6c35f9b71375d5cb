"""The page of the keys at Venice: adding with a check, disabling, and never a key."""

import re
from uuid import UUID

import pytest
from reading import fields_of, rows_of, send, text_of
from support import MODEL, OPERATOR_KEY, ORGANIZATIONS
from visits import visiting

from service import api
from service.audit import OPERATOR_ORGANIZATION_ID
from service.errors import Evidence, UpstreamError
from service.upstream import Source

PAGE = "/dashboard/venice-keys"
ADD = f"{PAGE}/add"


async def keys_of(service):
    """Return the keys as the API lists them, by name."""
    _, body = await service.operate("GET", "/admin/v1/upstream-keys")
    return {key["name"]: key for key in body["upstream_keys"]}


async def shown(visitor):
    """Return the rows of the page by the first word of the name."""
    _, text = await visitor.get(PAGE)
    return {row["Name"].split()[0]: row for row in rows_of(text, "Condition")}


async def test_a_key_is_added_and_checked(service):
    """A new key is checked at once, and the page shows its balance and condition, and never the
    key."""
    async with visiting(service, OPERATOR_KEY) as visitor:
        status, text, headers = await send(visitor, PAGE, ADD, name="spare", key="second")
        assert status == 303, text
        _, text = await visitor.get(headers["Location"])
        assert "Venice accepts it" in text
        row = (await shown(visitor))["spare"]
        assert row["Condition"].startswith("well checked")
        assert row["For"] == "everybody"
        assert row["USD left"].startswith("$")
        stored = (await keys_of(service))["spare"]
        assert f'title="{stored["balance_usd"]} USD"' in text
        assert 'value="second"' not in text
        assert ">second<" not in text
    path = f"{ORGANIZATIONS}/{OPERATOR_ORGANIZATION_ID}/audit-events"
    _, body = await service.operate("GET", path)
    event = next(event for event in body["events"] if event["action"] == "upstream_key.add")
    assert event["actor"] == "operator"
    assert "second" not in str(event)


async def test_a_key_that_venice_refuses(service):
    """A key that Venice does not know is added, and the page states what is wrong with it."""
    async with visiting(service, OPERATOR_KEY) as visitor:
        status, _, headers = await send(visitor, PAGE, ADD, name="wrong", key="not-a-key")
        assert status == 303
        _, text = await visitor.get(headers["Location"])
        assert "did not pass its check" in text
        row = (await shown(visitor))["wrong"]
    assert "invalid" in row["Condition"]
    assert "Venice rejected the key" in row["Condition"]


async def test_a_key_of_one_organization(service):
    """A key may be for one organization, by its name or id."""
    caller = await service.new_caller("with a key of its own")
    async with visiting(service, OPERATOR_KEY) as visitor:
        fields = {"name": "theirs", "key": "third", "organization": "with a key of its own"}
        assert (await send(visitor, PAGE, ADD, **fields))[0] == 303
        row = (await shown(visitor))["theirs"]
    assert row["For"] == "with a key of its own"
    assert (await keys_of(service))["theirs"]["organization_id"] == caller.organization_id


@pytest.mark.parametrize(
    ("fields", "at_fault", "words"),
    [
        ({"name": "", "key": "second"}, "name", "1 to 200"),
        ({"name": "environment", "key": "second"}, "name", "reserved"),
        ({"name": "spare", "key": ""}, "key", "1 to 1000"),
        ({"name": "spare", "key": "two words"}, "key", "without spaces"),
        ({"name": "spare", "key": "second", "organization": "nobody"}, "organization", "nobody"),
    ],
    ids=["no-name", "reserved", "no-key", "spaces", "organization"],
)
async def test_a_wrong_key_keeps_what_was_typed(service, fields, at_fault, words):
    """A refused form marks the field, states the rule and keeps what was typed, but not the key."""
    async with visiting(service, OPERATOR_KEY) as visitor:
        status, text, _ = await send(visitor, PAGE, ADD, **fields)
    assert 400 <= status < 500
    assert words in text_of(text)
    assert 'aria-invalid="true"' in re.search(rf'<input[^>]* name="{at_fault}"[^>]*>', text)[0]
    kept = fields_of(text, ADD)
    assert kept["name"] == fields["name"]
    assert kept["key"] == ""
    assert "two words" not in text
    assert set(await keys_of(service)) == {"environment"}


async def test_a_key_is_disabled_and_enabled(service):
    """A disabled key takes no calls until it is enabled again; both are audited."""
    caller = await service.new_caller("acme")
    async with visiting(service, OPERATOR_KEY) as visitor:
        key_id = (await keys_of(service))["environment"]["id"]
        _, text = await visitor.get(PAGE)
        assert "<summary>Disable</summary>" in text
        status, _, headers = await send(visitor, PAGE, f"{PAGE}/{key_id}/disable")
        assert status == 303
        assert "The key is disabled." in (await visitor.get(headers["Location"]))[1]
        assert "disabled" in (await shown(visitor))["environment"]["Condition"]
        async with caller.chat() as response:
            assert response.status == 503
        status, _, headers = await send(visitor, PAGE, f"{PAGE}/{key_id}/enable")
        assert status == 303
        assert "Venice accepts it" in (await visitor.get(headers["Location"]))[1]
        async with caller.chat() as response:
            assert response.status == 200
    path = f"{ORGANIZATIONS}/{OPERATOR_ORGANIZATION_ID}/audit-events"
    _, body = await service.operate("GET", path)
    actions = [event["action"] for event in body["events"] if event["actor"] == "operator"]
    assert actions[:2] == ["upstream_key.enable", "upstream_key.disable"]


async def test_a_check_finds_what_changed(service, upstream):
    """The check asks Venice again, and a key that is not in use is not checked."""
    key_id = (await keys_of(service))["environment"]["id"]
    async with visiting(service, OPERATOR_KEY) as visitor:
        upstream.faults.push("/api_keys/rate_limits", "insufficient_balance")
        status, _, headers = await send(visitor, PAGE, f"{PAGE}/{key_id}/check")
        assert status == 303
        assert "not_well" in headers["Location"]
        row = (await shown(visitor))["environment"]
        assert "spent" in row["Condition"]
        assert "no balance left" in row["Condition"]
        upstream.faults.clear()
        _, _, headers = await send(visitor, PAGE, f"{PAGE}/{key_id}/check")
        assert "Venice accepts the key." in (await visitor.get(headers["Location"]))[1]
        _, text = await visitor.get(PAGE)
        token = fields_of(text, ADD)["csrf"]
        await send(visitor, PAGE, f"{PAGE}/{key_id}/disable")
        status, text, _ = await visitor.post(f"{PAGE}/{key_id}/check", {"csrf": token})
        assert status == 409
        assert "not in use" in text_of(text)
        nothing = "00000000-0000-7000-8000-000000000000"
        assert (await visitor.post(f"{PAGE}/{nothing}/check", {"csrf": token}))[0] == 404


async def test_cooldowns_name_those_that_they_bind(service):
    """A cooldown is shown with its model, its reason, and the key or organization that it binds."""
    caller = await service.new_caller("cooled organization")
    keys = service.app[api.VENICE].keys
    (key,) = keys.all
    failure = UpstreamError("x")
    failure.evidence = Evidence.CALLER_REFUSED
    failure.upstream_status = 403
    source = Source(UUID(caller.organization_id), UUID(caller.key_id))
    keys.failed(key, MODEL, source, failure)
    async with visiting(service, OPERATOR_KEY) as visitor:
        _, text = await visitor.get(PAGE)
    (row,) = rows_of(text, "For calls of")
    assert row["Model"] == MODEL
    assert row["For calls of"] == "cooled organization"
    assert row["Reason"] == "status 403"
    assert row["Left"].endswith("s")
    assert f"/dashboard/keys/{caller.key_id}" in text
