"""The page of models: prices, filters, aliases, and who uses a model that ends."""

import re

import pytest
from reading import fields_of, rows_of, send, text_of
from support import MODEL, MODELS, OPERATOR_KEY, ORGANIZATIONS, set_alias
from visits import visiting

from service import api

pytestmark = pytest.mark.shares_service

PAGE = "/dashboard/models"
ALIASES = f"{PAGE}?kind=alias"
FORM = f"{PAGE}/aliases"
ENDING = "llama-3.2-3b"


async def new_administrator(caller, **key):
    """Make an administrator's key of the caller's organization; return the key."""
    path = f"{ORGANIZATIONS}/{caller.organization_id}/keys"
    body = {"name": "admin", "role": "admin", **key}
    status, made = await caller.service.operate("POST", path, json=body)
    assert status == 201, made
    return made["key"]


async def aliases(service):
    """Return the aliases as the API lists them: targets by name."""
    _, body = await service.operate("GET", f"{MODELS}?kind=alias")
    return {alias["name"]: alias["targets"] for alias in body["models"]}


async def test_models_have_their_prices(service):
    """Text models have context and prices in columns, exactly as Venice states them."""
    async with visiting(service, OPERATOR_KEY) as visitor:
        _, text = await visitor.get(PAGE)
    rows = {row["Model"].split()[0]: row for row in rows_of(text, "Cached input")}
    assert rows["kimi-k2-6"]["Context"] == "262,144"
    assert rows["kimi-k2-6"]["Input"] == "$0.75"
    assert rows["kimi-k2-6"]["Output"] == "$3.50"
    assert rows["kimi-k2-6"]["Cached input"] == "$0.15"
    assert "vision" in rows["kimi-k2-6"]["Can"]
    assert "fastest" in rows["kimi-k2-6"]["Model"]
    assert rows["unpriced-preview"]["Input"] == "unknown"
    assert "prompts over 32,000 tokens" in rows["claude-opus-4-8"]["Further prices"]
    assert "$45.00" in rows["claude-opus-4-8"]["Further prices"]
    assert "venice-sd35" not in rows


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("type=image", {"venice-sd35", "nano-banana-pro"}),
        ("type=embedding", {"text-embedding-bge-m3", "text-embedding-qwen3-8b"}),
        ("q=KIMI", {"kimi-k2-6"}),
        ("q=dall-e", {"venice-sd35"}),
        ("q=gpt-4o&type=text", None),
        ("q=nosuch", set()),
        ("type=nosuch", set()),
    ],
)
async def test_filters(service, query, expected):
    """Models are found by type and by a part of any of their names, in any case."""
    async with visiting(service, OPERATOR_KEY) as visitor:
        status, text = await visitor.get(f"{PAGE}?{query}")
    assert status == 200
    found = {row["Model"].split()[0] for row in rows_of(text, "Can")}
    if expected is None:
        assert {"zai-org-glm-5-1", "llama-3.3-70b"} <= found
    else:
        assert found == expected
    if not found:
        assert "Nothing fits these filters." in text


async def test_pages_hold_each_model_once(service, monkeypatch):
    """From page to page every model comes once, in the order of names."""
    monkeypatch.setattr("service.dashboard.pages.models.PAGE", 7)
    names, path = [], f"{PAGE}?type=all"
    async with visiting(service, OPERATOR_KEY) as visitor:
        while path:
            _, text = await visitor.get(path)
            names += [row["Model"].split()[0] for row in rows_of(text, "Can")]
            found = re.search(r'href="([^"]*)" rel="next"', text)
            path = found and found[1].replace("&amp;", "&")
    _, body = await service.operate("GET", f"{MODELS}?kind=venice&limit=1000")
    assert len(names) == len(set(names))
    assert set(names) == {model["name"] for model in body["models"]}


async def test_an_alias_is_set_and_removed(service):
    """The form sets an alias as the API does, for everybody or an organization found by its name,
    and each change is audited with the actor."""
    caller = await service.new_caller("aliased organization")
    async with visiting(service, OPERATOR_KEY) as visitor:
        assert "There is no alias yet." in (await visitor.get(ALIASES))[1]
        status, text, headers = await send(
            visitor, ALIASES, FORM, alias="fast", targets=f"{MODEL}, kimi-k2-6"
        )
        assert status == 303, text
        own = {"alias": "own", "targets": MODEL, "organization": "aliased organization"}
        assert (await send(visitor, ALIASES, FORM, **own))[0] == 303
        assert await aliases(service) == {"fast": [MODEL, "kimi-k2-6"], "own": [MODEL]}
        _, text = await visitor.get(headers["Location"])
        assert "The alias is set." in text
        rows = {row["Alias"]: row for row in rows_of(text, "Alias")}
        assert rows["fast"]["Models, the best first"] == f"{MODEL} , kimi-k2-6"
        assert rows["fast"]["For"] == "everybody"
        assert rows["own"]["For"] == "aliased organization"
        async with caller.chat(model="own") as response:
            assert response.headers["x-rialto-model"] == MODEL
        forms = re.findall(r"<form.*?</form>", text, re.DOTALL)
        for form in forms:
            if f'action="{FORM}/remove' in form:
                fields = fields_of(form, f"{FORM}/remove")
                assert (await visitor.post(f"{FORM}/remove", fields))[0] == 303
        assert await aliases(service) == {}
    organization = caller.organization_id
    _, body = await service.operate("GET", f"{ORGANIZATIONS}/{organization}/audit-events")
    changes = [event for event in body["events"] if event["action"].startswith("model_alias.")]
    assert [event["action"] for event in changes] == ["model_alias.remove", "model_alias.set"]
    assert {event["actor"] for event in changes} == {"operator"}


@pytest.mark.parametrize(
    ("fields", "at_fault", "words"),
    [
        ({"alias": "two words", "targets": MODEL}, "alias", "without spaces"),
        ({"alias": MODEL, "targets": "kimi-k2-6"}, "alias", "is the name of a Venice model"),
        ({"alias": "fast", "targets": "nosuch"}, "targets", "not a model on Venice"),
        ({"alias": "fast", "targets": ""}, "targets", "1 to 8"),
        ({"alias": "fast", "targets": f"{MODEL}, {MODEL}"}, "targets", "different"),
        ({"alias": "fast", "targets": MODEL, "organization": "nobody"}, "organization", "nobody"),
    ],
    ids=["name", "model", "target", "none", "twice", "organization"],
)
async def test_a_wrong_alias_keeps_what_was_typed(service, fields, at_fault, words):
    """A refused form marks the field, states the rule and keeps what was typed; nothing changes."""
    async with visiting(service, OPERATOR_KEY) as visitor:
        status, text, _ = await send(visitor, ALIASES, FORM, **fields)
    assert 400 <= status < 500
    assert words in text_of(text)
    assert 'aria-invalid="true"' in re.search(rf'<input[^>]* name="{at_fault}"[^>]*>', text)[0]
    kept = fields_of(text, FORM)
    assert {name: kept[name] for name in fields} == fields
    assert await aliases(service) == {}


async def test_an_administrator_sets_its_own_aliases_alone(service):
    """An administrator sets aliases of its organization, sees those that everybody has, and neither
    sees nor changes others'."""
    caller, other = await service.new_caller("first"), await service.new_caller("second")
    await set_alias(service, "shared", [MODEL])
    await set_alias(service, "theirs", [MODEL], other.organization_id)
    await set_alias(service, "given", [MODEL], caller.organization_id)
    key = await new_administrator(caller)
    async with visiting(service, key) as visitor:
        _, text = await visitor.get(ALIASES)
        rows = {row["Alias"]: row for row in rows_of(text, "Alias")}
        assert set(rows) == {"shared", "given"}
        assert rows["shared"]["Change"] == rows["given"]["Change"] == ""
        assert 'name="organization"' not in text
        stated = {"alias": "mine", "targets": MODEL, "organization": other.organization_id}
        assert (await send(visitor, ALIASES, FORM, **stated))[0] == 303
        rows = {row["Alias"]: row for row in rows_of((await visitor.get(ALIASES))[1], "Alias")}
        assert rows["mine"]["For"] == "first"
        assert "Remove" in rows["mine"]["Change"]
        token = await visitor.token(ALIASES)
        for alias, owner in (("shared", ""), ("theirs", other.organization_id)):
            fields = {"csrf": token, "alias": alias, "organization_id": owner}
            assert (await visitor.post(f"{FORM}/remove", fields))[0] == 403
        status, text, _ = await send(visitor, ALIASES, FORM, alias="given", targets="kimi-k2-6")
        assert status == 403
        assert "only the operator can change it" in text_of(text)


async def test_an_administrators_aliases_lead_to_its_own_models(service):
    """An administrator's key that may use one model sets no alias for another."""
    caller = await service.new_caller("narrow")
    key = await new_administrator(caller, models=[MODEL])
    async with visiting(service, key) as visitor:
        status, text, _ = await send(visitor, ALIASES, FORM, alias="more", targets="kimi-k2-6")
    assert status == 403
    assert "your own key may use" in text_of(text)
    assert await aliases(service) == {}


async def test_a_deleted_organization_gets_no_alias(service):
    """Neither the form nor the API sets an alias for an organization that was deleted."""
    caller = await service.new_caller("gone")
    status, _ = await service.operate("DELETE", f"{ORGANIZATIONS}/{caller.organization_id}")
    assert status == 204
    stated = {"alias": "late", "targets": MODEL, "organization": caller.organization_id}
    async with visiting(service, OPERATOR_KEY) as visitor:
        status, text, _ = await send(visitor, ALIASES, FORM, **stated)
        assert status == 409
        assert "deleted" in text_of(text)
    body = {"targets": [MODEL], "organization_id": caller.organization_id}
    status, _ = await service.operate("PUT", f"{MODELS}/late", json=body)
    assert status == 409
    assert await aliases(service) == {}


async def test_who_uses_a_model_that_ends(service):
    """A deprecated model that was used is named with its end, its replacement and its users; an
    administrator sees the users of its own organization."""
    caller, other = await service.new_caller("late"), await service.new_caller("later")
    for each in (caller, caller, other):
        async with each.chat(model=ENDING) as response:
            assert response.status == 200
    key = await new_administrator(caller)
    for viewer, organizations in ((OPERATOR_KEY, {"late", "later"}), (key, {"late"})):
        async with visiting(service, viewer) as visitor:
            _, text = await visitor.get(PAGE)
        rows = {row["Organization"]: row for row in rows_of(text, "Ends")}
        assert set(rows) == organizations
        assert rows["late"]["Calls"] == "2"
        assert rows["late"]["Model"] == ENDING
        assert rows["late"]["Then"] == MODEL
        assert rows["late"]["Ends"] == "2027-01-31"


async def test_a_retired_model_stays_known(service, upstream):
    """A model that Venice no longer lists is among the retired ones, and not among the models."""
    upstream.listing.change("kimi-k2-6", None)
    await service.app[api.CATALOG].sync()
    async with visiting(service, OPERATOR_KEY) as visitor:
        _, text = await visitor.get(f"{PAGE}?kind=retired")
        assert "kimi-k2-6" in text
        _, text = await visitor.get(f"{PAGE}?q=kimi")
        assert "Nothing fits these filters." in text
