"""The forms of organizations, keys and limits, and the live list, in Chromium: with and without a
script, wide and on a phone."""

import asyncio
import re

import browser as chromium
import pytest
from support import MODEL, OPERATOR_KEY, limits_of, set_limit
from test_forms_in_browser import LOOKS, fits, signed_in

from service import api

pytestmark = [pytest.mark.shares_service, pytest.mark.browser]

HOSTILE = "<img src=x onerror=alert(1)>\"'{{7*7}}"


def forget(tab, status):
    """Forget that a form was refused with the status, which a console reports."""
    tab.faults[:] = [fault for fault in tab.faults if f"status of {status}" not in fault]


async def status_of(service, key):
    """Return the status that a request with the key gets."""
    headers = {"Authorization": f"Bearer {key}"}
    async with service.http.get("/v1/limits", headers=headers) as response:
        return response.status


@pytest.mark.parametrize(("size", "script"), LOOKS)
async def test_from_nothing_to_a_call(service, browser, axe, size, script):
    """The operator makes an organization with a hostile name, a key and a limit, and calls with
    the key that the page shows; a wrong amount is named beside its field first."""
    async with signed_in(browser, service, OPERATOR_KEY, size, script) as tab:
        await tab.goto("/dashboard/organizations")
        await tab.get_by_label("Name").fill(f"{HOSTILE} {script}")
        await tab.get_by_role("button", name="Create").click()
        assert "Next it needs a key" in await tab.get_by_role("status").inner_text()
        assert HOSTILE in await tab.get_by_role("heading", level=1).inner_text()
        await tab.get_by_role("link", name="Make a key").click()
        await tab.get_by_label("Name", exact=True).fill(HOSTILE)
        await tab.get_by_role("button", name="Create").click()
        secret = await tab.get_by_label("The key", exact=True).inner_text()
        assert re.fullmatch(r"rk_[A-Za-z0-9_-]{43}", secret)
        assert await tab.locator("[data-copy]").first.is_visible() == script
        assert await fits(tab)
        if script:
            assert await chromium.violations(tab, axe) == {}
        await tab.get_by_role("link", name="set a limit").click()
        await tab.get_by_label("At most").fill("much")
        await tab.get_by_role("button", name="Set the limit").click()
        fault = tab.get_by_role("alert")
        assert "ceiling" in await fault.inner_text()
        assert await tab.get_by_label("At most").input_value() == "much"
        assert await fits(tab)
        if script:
            assert await chromium.violations(tab, axe) == {}
        forget(tab, 400)
        await tab.get_by_label("At most").fill("1")
        await tab.get_by_label("Of", exact=True).select_option("requests")
        await tab.get_by_label("In", exact=True).select_option("a day")
        await tab.get_by_role("button", name="Set the limit").click()
        assert "binds the next call" in await tab.get_by_role("status").inner_text()
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
        headers = {"Authorization": f"Bearer {secret}"}
        for expected in (200, 429):
            async with service.http.post(
                "/v1/chat/completions", json=body, headers=headers
            ) as response:
                assert response.status == expected
        await tab.reload()
        row = tab.locator("tr", has_text="1 request")
        assert "0 requests" in await row.inner_text()
        assert await row.get_by_role("img").get_attribute("aria-label")


@pytest.mark.parametrize(("size", "script"), LOOKS)
async def test_rotating_and_revoking(service, browser, axe, size, script):
    """A key is rotated with an overlap, and revoked after a box is ticked."""
    caller = await service.new_caller("turned")
    async with signed_in(browser, service, OPERATOR_KEY, size, script) as tab:
        await tab.goto(f"/dashboard/keys/{caller.key_id}")
        rotate = tab.get_by_role("button", name="Make a new secret")
        assert not await rotate.is_visible()
        await tab.get_by_text("Rotate: a new secret").click()
        await tab.get_by_label("The old secret goes on working").select_option("for an hour")
        await rotate.click()
        secret = await tab.get_by_label("The key", exact=True).inner_text()
        assert await status_of(service, secret) == await status_of(service, caller.key) == 200
        assert await fits(tab)
        await tab.get_by_role("link", name="To the key").click()
        await tab.locator("summary", has_text="Revoke").click()
        await tab.get_by_role("button", name="Revoke the key").click()
        assert "cannot be undone" in await tab.get_by_role("alert").inner_text()
        if script:
            assert await chromium.violations(tab, axe) == {}
        forget(tab, 400)
        await tab.get_by_label("Calls with this key are to fail").check()
        await tab.get_by_role("button", name="Revoke the key").click()
        assert "is revoked" in await tab.get_by_role("status").inner_text()
        assert await status_of(service, secret) == 401
        assert await tab.get_by_role("button", name="Revoke the key").count() == 0


@pytest.mark.parametrize(("size", "script"), LOOKS)
async def test_changing_a_key_keeps_what_was_typed(service, browser, size, script):
    """A form that is refused is open again with the fault beside its field; then it is right."""
    caller = await service.new_caller("changed")
    async with signed_in(browser, service, OPERATOR_KEY, size, script) as tab:
        await tab.goto(f"/dashboard/keys/{caller.key_id}")
        await tab.locator("summary", has_text="Name, expiry and restrictions").click()
        await tab.get_by_label("Name", exact=True).fill("better")
        await tab.get_by_label("Addresses").fill("nosuch")
        await tab.get_by_label("Expires (UTC)").fill("2100-01-01T00:00")
        await tab.get_by_role("button", name="Save").click()
        assert "ip_allow_list" in await tab.get_by_role("alert").inner_text()
        assert await tab.get_by_label("Name", exact=True).input_value() == "better"
        assert await tab.get_by_label("Addresses").input_value() == "nosuch"
        forget(tab, 400)
        await tab.get_by_label("Addresses").fill("192.0.2.0/24")
        await tab.get_by_role("button", name="Save").click()
        assert "is changed" in await tab.get_by_role("status").inner_text()
        text = await tab.locator("main").inner_text()
        assert "192.0.2.0/24" in text
        assert await tab.get_by_role("heading", level=1).inner_text() == "better"
        assert await fits(tab)


@pytest.mark.parametrize(("size", "script"), LOOKS)
async def test_raising_and_deleting_a_limit(service, browser, size, script):
    """A limit is raised until a time and deleted after a box is ticked."""
    caller = await service.new_caller("raised")
    limit = await set_limit(caller, unit="usd", period="month", ceiling="5")
    async with signed_in(browser, service, OPERATOR_KEY, size, script) as tab:
        await tab.goto(f"/dashboard/limits/{limit['id']}")
        await tab.locator("summary", has_text="Raise it for a while").click()
        await tab.get_by_label("To", exact=True).fill("9")
        await tab.get_by_label("Until (UTC)").fill("2100-01-01T00:00")
        await tab.get_by_role("button", name="Raise", exact=True).click()
        assert "is raised" in await tab.get_by_role("status").inner_text()
        assert (await limits_of(caller))[0]["ceiling"] == "9.00"
        assert await fits(tab)
        await tab.get_by_role("button", name="End the raise now").click()
        assert (await limits_of(caller))[0]["ceiling"] == "5.00"
        await tab.locator("summary", has_text="Delete").click()
        await tab.get_by_label("Calls are to be admitted without").check()
        await tab.get_by_role("button", name="Delete the limit").click()
        assert "is deleted" in await tab.get_by_role("status").inner_text()
        assert await limits_of(caller) == []


@pytest.mark.parametrize(("size", "script"), LOOKS)
async def test_suspending_needs_the_name(service, browser, size, script):
    """An organization is suspended and deleted only once its name was typed."""
    name = f"ended {script}"
    caller = await service.new_caller(name)
    async with signed_in(browser, service, OPERATOR_KEY, size, script) as tab:
        await tab.goto(f"/dashboard/organizations/{caller.organization_id}/settings")
        await tab.locator("summary", has_text="Refuse all its calls").click()
        confirm = tab.get_by_label("Type its name to confirm").first
        await confirm.fill("ended")
        await tab.get_by_role("button", name="Suspend").click()
        assert "to confirm" in await tab.get_by_role("alert").inner_text()
        forget(tab, 400)
        await tab.get_by_label("Type its name to confirm").first.fill(name)
        await tab.get_by_role("button", name="Suspend").click()
        assert "is suspended" in await tab.get_by_role("status").inner_text()
        assert await status_of(service, caller.key) == 403
        assert await fits(tab)
        await tab.get_by_role("button", name="Resume").click()
        assert await status_of(service, caller.key) == 200
        await tab.locator("summary", has_text="End this organization").click()
        await tab.get_by_label("Type its name to confirm").last.fill(name)
        await tab.get_by_role("button", name="Delete").click()
        assert "is deleted" in await tab.get_by_role("status").inner_text()
        assert await status_of(service, caller.key) in (401, 403)


@pytest.mark.parametrize(("size", "script"), LOOKS)
async def test_finding_a_request(service, browser, axe, size, script):
    """A request is found by its id, a filter that is wrong is named, and the view has a URL of its
    own that shows it again."""
    caller = await service.new_caller("searcher")
    async with caller.chat(user="ada") as response:
        await response.read()
        request_id = response.headers["x-request-id"]
    async with signed_in(browser, service, OPERATOR_KEY, size, script) as tab:
        await tab.goto("/dashboard/requests")
        await tab.get_by_label("Request id").fill(request_id)
        await tab.get_by_role("button", name="Show").click()
        await tab.wait_for_url("**request_id=**")
        assert await tab.locator("tbody tr").count() == 1
        await tab.locator("tbody a").first.click()
        assert request_id in await tab.locator("main").inner_text()
        if script:
            assert await chromium.violations(tab, axe) == {}
        await tab.goto("/dashboard/requests?model=stays")
        await tab.locator("summary", has_text="More filters").click()
        await tab.get_by_label("Tag").fill("wrong")
        await tab.get_by_role("button", name="Show").click()
        assert "name=value" in await tab.get_by_role("alert").inner_text()
        assert await tab.get_by_label("Tag").input_value() == "wrong"
        assert await tab.get_by_label("Model").input_value() == "stays"
        if script:
            assert await chromium.violations(tab, axe) == {}
        assert await fits(tab)
        forget(tab, 400)


async def test_times_of_links_can_be_sent_again(service, browser):
    """A period from a link is shown in its field, and the form can be sent with it."""
    async with signed_in(browser, service, OPERATOR_KEY, chromium.WIDE, script=True) as tab:
        await tab.goto("/dashboard/requests?from=2026-11-01T08:30:15.125Z")
        assert await tab.get_by_label("From (UTC)").input_value() == "2026-11-01T08:30:15.125"
        await tab.get_by_label("Model").fill("sent")
        await tab.get_by_role("button", name="Show").click()
        await tab.wait_for_url("**model=sent**")
        assert await tab.get_by_label("From (UTC)").input_value() == "2026-11-01T08:30:15.125"


async def test_the_list_is_live(service, browser):
    """While the list is followed, a new call appears by itself, and it can be stopped. The script
    gets the rows alone."""
    caller = await service.new_caller("followed")
    async with signed_in(browser, service, OPERATOR_KEY, chromium.WIDE, script=True) as tab:
        await tab.clock.install()
        sizes = []

        async def weigh(response):
            if "live=1" in response.url and response.request.resource_type == "fetch":
                sizes.append(len(await response.body()))

        tab.on("response", weigh)
        await tab.goto("/dashboard/requests?organization=followed")
        assert "Nothing fits" in await tab.locator("main").inner_text()
        await tab.get_by_role("link", name="Follow live").click()
        await tab.wait_for_url("**live=1**")
        async with caller.chat() as response:
            await response.read()
        async with asyncio.timeout(15):
            while not await tab.locator("#newest tbody tr").count():
                await tab.clock.run_for(4_000)
                await asyncio.sleep(0.05)
        assert await tab.locator("#newest tbody tr").count() == 1
        assert sizes
        assert max(sizes) < len(await tab.content())
        await tab.clock.run_for(31 * 60 * 1000)
        asked = len(sizes)
        await tab.clock.run_for(60_000)
        assert len(sizes) == asked
        await tab.get_by_role("link", name="Stop").click()
        await tab.wait_for_url(lambda url: "live" not in url)


async def test_a_call_in_flight_is_followed_to_its_end(service, browser, upstream):
    """The page of a call that runs shows by itself that it has ended."""
    caller = await service.new_caller("running")
    upstream.faults.push("/chat/completions", "slow_headers", seconds=8)

    async def call():
        async with caller.chat() as response:
            await response.read()

    running = asyncio.create_task(call())
    async with signed_in(browser, service, OPERATOR_KEY, chromium.WIDE, script=True) as tab:
        await tab.goto(f"/dashboard/calls?organization={caller.organization_id}")
        await tab.locator("tbody a").first.click()
        assert "in flight" in await tab.locator(".figures").inner_text()
        await running
        await tab.locator(".figures", has_text="ok").wait_for()
        assert "in flight" not in await tab.locator(".figures").inner_text()


async def test_an_administrator_has_its_own_organization_alone(service, browser):
    """The navigation of an administrator leads to its own organization, without settings."""
    caller = await service.new_caller("administered", role="admin")
    await service.new_caller("concealed")
    async with signed_in(browser, service, caller.key, chromium.WIDE, script=True) as tab:
        await tab.get_by_role("link", name="Organizations").click()
        assert await tab.get_by_role("heading", level=1).inner_text() == "administered"
        assert "concealed" not in await tab.content()
        assert await tab.get_by_role("link", name="Settings").count() == 0


async def test_a_refusal_is_proved(service, browser, axe):
    """A refusal is found by its cause, and its page has the sum that proves it."""
    caller = await service.new_caller("provable")
    await set_limit(caller, unit="usd", period="month", ceiling="0.0000001")
    async with caller.chat(max_tokens=50) as response:
        assert response.status == 402
        request_id = response.headers["x-request-id"]
    await service.app[api.RECORDER].write()
    async with signed_in(browser, service, OPERATOR_KEY, chromium.WIDE, script=True) as tab:
        await tab.goto("/dashboard/refusals?organization=provable")
        await tab.locator("tr", has_text="limit_exceeded").first.get_by_role("link").click()
        await tab.wait_for_url("**code=limit_exceeded**")
        await tab.locator("section[aria-labelledby=list] tbody a").first.click()
        text = await tab.locator("main").inner_text()
        assert request_id in text
        assert "needed at most" in text
        assert await chromium.violations(tab, axe) == {}
