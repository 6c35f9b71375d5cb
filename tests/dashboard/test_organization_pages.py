"""Organizations: the list, one of them with its usage and end users, and the forms that change
it."""

import html
import re
from datetime import UTC, datetime

import pytest
from markupsafe import escape
from reading import rows_of, send, text_of
from support import MODEL, OPERATOR_KEY, ORGANIZATIONS, set_limit
from visits import visiting

from service.dashboard import formats
from service.dashboard.pages import organization_usage as usage_pages
from service.dashboard.pages import organizations as pages
from service.reports import usage

pytestmark = pytest.mark.shares_service

PAGE = "/dashboard/organizations"
OTHER_MODEL = "venice-uncensored"
HOSTILE = "<script>alert(1)</script>'\""


async def chat(caller, **members):
    """Make a call; return its status."""
    async with caller.chat(**members) as response:
        await response.read()
        return response.status


async def events(service, organization_id):
    """Return the organization's audit events, newest first."""
    _, body = await service.operate("GET", f"{ORGANIZATIONS}/{organization_id}/audit-events")
    return body["events"]


async def state_of(service, organization_id):
    """Return the organization as the API has it."""
    return (await service.operate("GET", f"{ORGANIZATIONS}/{organization_id}"))[1]


async def test_the_list_has_what_each_spent(service, caller):
    """Each organization is listed with its status and what it spent this month, which is a link to
    the calls."""
    await chat(caller)
    entry = await caller.only_entry()
    async with visiting(service, OPERATOR_KEY) as visitor:
        path, row = PAGE, None
        while row is None:
            _, text = await visitor.get(path)
            rows = re.findall(r"<tr>.*?</tr>", text, re.DOTALL)
            found = [line for line in rows if caller.organization_id in line]
            if found:
                row = found[0]
            else:
                path = html.unescape(re.search(r'href="([^"]*)" rel="next"', text)[1])
        assert formats.usd(entry["cost_usd"]) in text_of(row)
        assert "active" in text_of(row)
        link = html.unescape(re.search(r'href="([^"]*/requests[^"]*)"', row)[1])
        _, listed = await visitor.get(link)
        assert len(rows_of(listed, "Took")) == 1


async def test_pages_hold_each_organization_once(service, monkeypatch):
    """From page to page every organization comes once."""
    monkeypatch.setattr(pages, "PAGE", 2)
    made = {(await service.new_caller(f"listed {number}")).organization_id for number in range(3)}
    found, path = [], PAGE
    async with visiting(service, OPERATOR_KEY) as visitor:
        while path:
            _, text = await visitor.get(path)
            table = text[text.index("<tbody>") : text.index("</tbody>")]
            found += re.findall(rf'href="{PAGE}/([0-9a-f-]{{36}})"', table)
            link = re.search(r'href="([^"]*)" rel="next"', text)
            path = html.unescape(link[1]) if link else ""
    assert len(found) == len(set(found))
    assert made <= set(found)


async def test_going_to_an_organization_by_its_name(service):
    """The field leads to the organization with this name or id; a wrong one is named."""
    caller = await service.new_caller("findable name")
    async with visiting(service, OPERATOR_KEY) as visitor:
        for text in ("findable+name", caller.organization_id):
            async with visitor.http.get(f"{PAGE}?find={text}", allow_redirects=False) as answer:
                assert answer.headers["Location"] == f"{PAGE}/{caller.organization_id}"
        status, text = await visitor.get(f"{PAGE}?find=findable+nam")
        assert status == 404
        assert "Did you mean" in text
        status, text = await visitor.get(f"{PAGE}/findable%20name")
        assert status == 200


async def test_creating_an_organization(service):
    """The form makes an organization, audited with who made it, and its page says what is next."""
    async with visiting(service, OPERATOR_KEY) as visitor:
        status, _, headers = await send(visitor, PAGE, f"{PAGE}/create", name=HOSTILE)
        assert status == 303
        location = headers["Location"]
        organization_id = location.partition("?")[0].rpartition("/")[2]
        assert (await state_of(service, organization_id))["name"] == HOSTILE
        (event,) = await events(service, organization_id)
        assert (event["action"], event["actor"]) == ("organization.create", "operator")
        _, text = await visitor.get(location)
        assert "Next it needs a key and a limit." in text
        assert "Make a key" in text_of(text)
        assert str(escape(HOSTILE)) in text
        assert HOSTILE not in text


@pytest.mark.parametrize("name", ["", "x" * 201, "a\x07b"], ids=["empty", "long", "control"])
async def test_a_wrong_name_is_refused(service, name):
    """A name that breaks its rule is refused beside its field, with what was typed."""
    async with visiting(service, OPERATOR_KEY) as visitor:
        status, text, _ = await send(visitor, PAGE, f"{PAGE}/create", name=name)
    assert status == 400
    assert "must be 1 to 200 characters" in text
    assert 'aria-invalid="true"' in text
    assert str(escape(name)) in text


async def test_the_page_has_what_was_spent(service, caller):
    """What was spent, by day and by key, is what the ledger has, and links to it."""
    await set_limit(caller, unit="usd", period="month", ceiling="5")
    for _ in range(2):
        await chat(caller)
    spent = sum(float(entry["cost_usd"]) for entry in await caller.entries())
    async with visiting(service, OPERATOR_KEY) as visitor:
        _, text = await visitor.get(f"{PAGE}/{caller.organization_id}")
        (row,) = rows_of(text, "Share")
        assert (row["Key"], row["Calls"]) == ("acme", "2")
        assert row["Spent"] == formats.usd(str(round(spent, 12)))
        day = rows_of(text, "Day")[-1]
        assert day["Spent"].endswith("2 calls")
        (limit,) = rows_of(text, "Of the limit")
        assert limit["Used"] == row["Spent"]
        assert limit["Limit"] == "$5.00 a month"
        for link in set(re.findall(r'href="(/dashboard/requests\?[^"]*)"', text)):
            status, listed = await visitor.get(html.unescape(link))
            assert status == 200
            assert len(rows_of(listed, "Took")) in (0, 2)


@pytest.mark.parametrize(
    ("group_by", "expected"),
    [
        ("model", {MODEL: "2", OTHER_MODEL: "1"}),
        ("key", {"grouped": "3"}),
        ("endpoint", {"/chat/completions": "3"}),
        ("outcome", {"ok": "3"}),
        ("tag", {"team=a": "3", "part=b": "3"}),
    ],
)
async def test_usage_is_grouped(service, group_by, expected):
    """Usage has each group and the total, and every number links to exactly its calls."""
    caller = await service.new_caller("grouped")
    caller.headers |= {"x-rialto-tags": "team=a,part=b"}
    for model in (MODEL, MODEL, OTHER_MODEL):
        await chat(caller, model=model, user="ada")
    path = f"{PAGE}/{caller.organization_id}/usage"
    async with visiting(service, OPERATOR_KEY) as visitor:
        _, text = await visitor.get(f"{path}?group_by={group_by}")
        rows = {next(iter(row.values())): row for row in rows_of(text, "Share")}
        assert rows.pop("Total")["Calls"] == "3"
        assert {name: row["Calls"] for name, row in rows.items()} == expected
        for row in re.findall(r"<tr.*?</tr>", text, re.DOTALL):
            for link in re.findall(r'href="(/dashboard/requests\?[^"]*)"', row):
                calls = text_of(row).split("%")[-1].split()[0] if "%" in text_of(row) else "3"
                _, listed = await visitor.get(html.unescape(link))
                assert len(rows_of(listed, "Took")) == int(calls), link


@pytest.mark.parametrize("group_by", ["day", "hour", "end_user"])
async def test_usage_over_time_and_by_end_user(service, group_by):
    """Days, hours and end users link to their calls too."""
    caller = await service.new_caller("timed")
    await chat(caller, user="ada")
    path = f"{PAGE}/{caller.organization_id}/usage?group_by={group_by}"
    async with visiting(service, OPERATOR_KEY) as visitor:
        _, text = await visitor.get(path)
        links = re.findall(r'<td class="number"><a href="(/dashboard/requests\?[^"]*)"', text)
        counts = set()
        for link in links:
            _, listed = await visitor.get(html.unescape(link))
            counts.add(len(rows_of(listed, "Took")))
        assert 1 in counts
        assert counts <= {0, 1}


async def test_a_chart_has_no_more_columns_than_a_page_can_show(service):
    """A long period has its sums without a chart, so that the page stays small."""
    caller = await service.new_caller("long")
    await chat(caller)
    path = f"{PAGE}/{caller.organization_id}/usage?group_by=hour"
    async with visiting(service, OPERATOR_KEY) as visitor:
        _, text = await visitor.get(f"{path}&from=2020-01-01")
        assert 'class="chart"' not in text
        assert rows_of(text, "Share")[-1]["Calls"] == "1"
        today = datetime.now(UTC).date()
        _, text = await visitor.get(f"{path}&from={today}")
        assert 'class="chart"' in text


@pytest.mark.parametrize(
    ("group_by", "expected"),
    [("day", ["3", "2"]), ("hour", ["3", "2"]), ("model", ["1", "2"])],
)
def test_the_newest_days_come_first(monkeypatch, group_by, expected):
    """Of many days or hours the newest are shown, newest first; of others those that cost most."""
    monkeypatch.setattr(usage_pages, "SHOWN", 2)
    sums = dict.fromkeys(usage.Sums.__struct_fields__, 0) | {"cost_usd": "0"}
    now = datetime.now(UTC)
    report = usage.Report(
        group_by=group_by,
        start=now,
        end=now,
        groups=[usage.Group(key=key, **sums) for key in "123"],
        is_cut=False,
        total=usage.Sums(**sums),
    )
    assert [group.key for group in usage_pages.shown_groups(report)] == expected


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("from=nosuch", "from"),
        ("from=2026-02-01&to=2026-01-01", "from"),
        ("from=2100-01-01", "from"),
        ("key=nosuch", "key"),
        ("tag=nosuch", "tag"),
        ("group_by=nosuch", "group_by"),
    ],
)
async def test_a_wrong_filter_of_usage_is_named(service, caller, query, field):
    """What is wrong with a filter stands beside it."""
    async with visiting(service, OPERATOR_KEY) as visitor:
        status, text = await visitor.get(f"{PAGE}/{caller.organization_id}/usage?{query}")
    assert status in (400, 404)
    assert re.search(rf'name="{field}"[^>]*aria-invalid="true"', text)


async def test_an_end_user_is_looked_up(service):
    """An end user is found by its whole name or from the list, with its usage and limits; its name
    is nowhere unless it was typed."""
    caller = await service.new_caller("with users")
    await set_limit(caller, unit="usd", period="day", ceiling="2", each_end_user=True)
    await set_limit(caller, unit="requests", period="day", ceiling=9, end_user="ada")
    await chat(caller, user="ada")
    path = f"{PAGE}/{caller.organization_id}/end-users"
    async with visiting(service, OPERATOR_KEY) as visitor:
        _, text = await visitor.get(path)
        assert "ada<" not in text
        link = html.unescape(re.search(rf'href="({path}\?end_user=digest[^"]*)"', text)[1])
        for found in (link, f"{path}?end_user=ada"):
            _, text = await visitor.get(found)
            (row,) = rows_of(text, "Model")
            assert row["Calls"] == "1"
            limits = rows_of(text, "Of the limit")
            assert {limit["Left"] for limit in limits} >= {"8 requests"}
            assert len(limits) == 2
        _, text = await visitor.get(f"{path}?end_user=nobody")
        assert "Nothing was used by an end user of this name in the last 7 days." in text


async def test_renaming(service, caller):
    """The form gives an organization another name, and the event names both."""
    path = f"{PAGE}/{caller.organization_id}/settings"
    async with visiting(service, OPERATOR_KEY) as visitor:
        status, _, headers = await send(visitor, path, f"{path}/rename", name="another")
        assert status == 303
        _, text = await visitor.get(headers["Location"])
        assert "has another name" in text
    assert (await state_of(service, caller.organization_id))["name"] == "another"
    event = (await events(service, caller.organization_id))[0]
    assert event["action"] == "organization.rename"
    assert event["actor"] == "operator"


async def test_suspending_and_resuming(service, caller):
    """A suspended organization's calls are refused until it is resumed; the name must be typed."""
    path = f"{PAGE}/{caller.organization_id}/settings"
    async with visiting(service, OPERATOR_KEY) as visitor:
        status, text, _ = await send(visitor, path, f"{path}/suspend", confirm="acm")
        assert status == 400
        assert "to confirm" in text
        assert 'value="acm"' in text
        assert await chat(caller) == 200
        status, _, _ = await send(visitor, path, f"{path}/suspend", confirm="acme")
        assert status == 303
        assert await chat(caller) == 403
        _, text = await visitor.get(f"{PAGE}/{caller.organization_id}")
        assert "Suspended" in text
        status, _, _ = await send(visitor, path, f"{path}/resume")
        assert status == 303
        assert await chat(caller) == 200
    actions = [event["action"] for event in await events(service, caller.organization_id)]
    assert actions[:2] == ["organization.resume", "organization.suspend"]


async def test_deleting(service, caller):
    """A deleted organization's keys are revoked, its ledger stays, and nothing can be changed; the
    name must be typed."""
    await chat(caller)
    path = f"{PAGE}/{caller.organization_id}/settings"
    async with visiting(service, OPERATOR_KEY) as visitor:
        status, _, _ = await send(visitor, path, f"{path}/delete", confirm="")
        assert status == 400
        assert (await state_of(service, caller.organization_id))["status"] == "active"
        status, _, _ = await send(visitor, path, f"{path}/delete", confirm="acme")
        assert status == 303
        assert await chat(caller) in (401, 403)
        for name in ("", "/keys", "/limits", "/usage", "/end-users", "/settings"):
            status, text = await visitor.get(f"{PAGE}/{caller.organization_id}{name}")
            assert status == 200, name
            assert 'class="danger"' not in text
        _, text = await visitor.get(f"{PAGE}/{caller.organization_id}")
        assert "Deleted" in text
        assert rows_of(text, "Share")[0]["Calls"] == "1"
    assert (await events(service, caller.organization_id))[0]["action"] == "organization.delete"


async def test_the_operators_own_organization_can_be_neither_suspended_nor_deleted(service):
    """Its page has no such form."""
    path = f"{PAGE}/00000000-0000-0000-0000-000000000000/settings"
    async with visiting(service, OPERATOR_KEY) as visitor:
        status, text = await visitor.get(path)
    assert status == 200
    assert "/suspend" not in text
    assert "/delete" not in text
