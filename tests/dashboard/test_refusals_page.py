"""Refusals: by cause, by filter, with their proof."""

import html
import re

import pytest
from reading import rows_of, text_of
from support import OPERATOR_KEY, set_limit
from visits import visiting

from service import api
from service.dashboard import formats
from service.dashboard.pages import refusals as pages

pytestmark = pytest.mark.shares_service

PAGE = "/dashboard/refusals"


async def refuse(service, caller, **members):
    """Make a call that is refused; return its status and request id."""
    async with caller.chat(**members) as response:
        await response.read()
        assert response.status >= 400
        await service.app[api.RECORDER].write()
        return response.status, response.headers["x-request-id"]


@pytest.fixture
async def refused(service):
    """A caller with a refusal by a limit of money, and two for a model that is not there."""
    caller = await service.new_caller("refused")
    for model in ("<i>nosuch</i>", "nosuch-2"):
        await refuse(service, caller, model=model)
    await set_limit(caller, unit="usd", period="month", ceiling="0.0000001", of_key=True)
    caller.refused_id = (await refuse(service, caller, max_tokens=50))[1]
    return caller


async def test_refusals_have_their_proof(service, refused):
    """A refusal by a limit is listed with what was used, held and needed, and the ceiling."""
    _, story = await service.operate("GET", f"/admin/v1/requests/{refused.refused_id}")
    (limit,) = story["limits"]
    async with visiting(service, OPERATOR_KEY) as visitor:
        _, text = await visitor.get(f"{PAGE}?organization={refused.organization_id}")
    rows = rows_of(text, "Why")
    assert len(rows) == 3
    assert rows[0]["Cause"] == "402 limit_exceeded"
    for name in ("used", "held", "needed", "ceiling"):
        assert formats.usd(limit[name]) in rows[0]["Why"]
    assert "<i>nosuch" not in text


async def test_causes_are_counted(service, refused):
    """Causes have their number, and each leads to its refusals."""
    async with visiting(service, OPERATOR_KEY) as visitor:
        _, text = await visitor.get(f"{PAGE}?organization={refused.organization_id}")
        causes = {row["Cause"]: row for row in rows_of(text, "Share")}
        assert causes["model_not_found"]["Refusals"] == "2"
        assert causes["limit_exceeded"]["Refusals"] == "1"
        for link in re.findall(r'href="([^"]*code=[^"]*)"', text):
            _, filtered = await visitor.get(html.unescape(link))
            code = re.search("code=([a-z_]+)", link)[1]
            rows = rows_of(filtered, "Why")
            assert len(rows) == int(causes[code]["Refusals"])
            assert {row["Cause"].split()[1] for row in rows} == {code}


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("code=limit_exceeded", 1),
        ("status=404", 2),
        ("status=402", 1),
        ("model=nosuch-2", 1),
        ("key=refused", 3),
        ("from=2020-01-01", 3),
        ("from=2020-01-01&to=2020-01-02", 0),
    ],
)
async def test_filters(service, refused, query, count):
    """Each filter finds its refusals."""
    async with visiting(service, OPERATOR_KEY) as visitor:
        path = f"{PAGE}?organization={refused.organization_id}&{query}"
        status, text = await visitor.get(path)
    assert status == 200, text_of(text)
    assert len(rows_of(text, "Why")) == count
    assert count or "Nothing fits these filters." in text


async def test_an_exact_request_id_ignores_the_period(service, refused):
    """A refusal is found by its id whatever the period is."""
    async with visiting(service, OPERATOR_KEY) as visitor:
        path = f"{PAGE}?request_id={refused.refused_id}&from=2020-01-01&to=2020-01-02"
        _, text = await visitor.get(path)
    assert len(rows_of(text, "Why")) == 1


@pytest.mark.parametrize(
    ("query", "field"), [("status=7", "status"), ("from=x", "from"), ("key=nosuch", "key")]
)
async def test_a_wrong_filter_is_named(service, query, field):
    """What is wrong with a filter stands beside it."""
    async with visiting(service, OPERATOR_KEY) as visitor:
        status, text = await visitor.get(f"{PAGE}?{query}")
    assert status in (400, 404)
    assert re.search(rf'name="{field}"[^>]*aria-invalid="true"', text)


async def test_pages_hold_each_refusal_once(service, refused, monkeypatch):
    """From page to page every refusal comes once."""
    monkeypatch.setattr(pages, "PAGE", 2)
    found, path = [], f"{PAGE}?organization={refused.organization_id}"
    async with visiting(service, OPERATOR_KEY) as visitor:
        while path:
            _, text = await visitor.get(path)
            found += [row["Request"] for row in rows_of(text, "Why")]
            link = re.search(r'href="([^"]*)" rel="next"', text)
            path = html.unescape(link[1]) if link else ""
    assert len(found) == len(set(found)) == 3


async def test_a_stranger_is_refused_without_an_organization(service):
    """A request with a key that nobody has is listed, and shown to the operator alone."""
    unknown = "rk_" + "Zq7" * 14 + "x"
    async with service.http.get("/v1/models", headers={"Authorization": f"Bearer {unknown}"}):
        pass
    await service.app[api.RECORDER].write()
    caller = await service.new_caller(role="admin")
    async with visiting(service, OPERATOR_KEY) as visitor:
        _, text = await visitor.get(f"{PAGE}?status=401")
        assert unknown[:10] in text
        assert unknown not in text
    async with visiting(service, caller.key) as visitor:
        _, text = await visitor.get(f"{PAGE}?status=401")
        assert unknown[:10] not in text
