"""The forms of models, Venice keys, the audit and a holder's pages, sent in Chromium with and
without a script, wide and on a phone."""

import asyncio
import contextlib

import browser as chromium
import pytest
from support import MODEL, OPERATOR_KEY, set_limit
from visits import forget_attempts

pytestmark = [pytest.mark.shares_service, pytest.mark.browser]

LOOKS = [
    pytest.param(chromium.WIDE, True, id="wide"),
    pytest.param(chromium.PHONE, False, id="phone-no-script"),
]


@contextlib.asynccontextmanager
async def signed_in(browser, service, key, size, script):
    """Open a tab and sign in with the key."""
    forget_attempts(service)
    async with chromium.opened(browser, service.url, size=size, script=script) as tab:
        await tab.goto("/dashboard/sign-in")
        await tab.get_by_label("Key").fill(key)
        await tab.get_by_role("button", name="Sign in").click()
        await tab.wait_for_load_state()
        yield tab
        assert tab.faults == []


async def fits(tab):
    """Return whether the page is no wider than the window."""
    return await tab.evaluate(
        "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    )


@pytest.mark.parametrize(("size", "script"), LOOKS)
async def test_quoting(service, browser, axe, size, script):
    """A holder quotes a call, sees what it costs at most and what is left, and changes one number
    of it."""
    caller = await service.new_caller("quoter")
    await set_limit(caller, unit="usd", period="month", ceiling="5")
    async with signed_in(browser, service, caller.key, size, script) as tab:
        await tab.get_by_role("link", name="Quote").click()
        await tab.get_by_label("Model or alias").fill(MODEL)
        await tab.get_by_label("Prompt", exact=True).fill("How tall is it?")
        await tab.get_by_label("Most output tokens").fill("100")
        await tab.get_by_role("button", name="Quote").click()
        await tab.get_by_role("heading", name=MODEL).wait_for()
        figures = await tab.locator(".figures").inner_text()
        assert "pass" in figures
        assert "$0.00" in figures
        assert await tab.get_by_label("Prompt", exact=True).input_value() == "How tall is it?"
        assert await fits(tab)
        if script:
            assert await chromium.violations(tab, axe) == {}
        await tab.get_by_label("Most output tokens").fill("200")
        await tab.get_by_role("button", name="Quote").click()
        async with asyncio.timeout(15):
            while await tab.locator(".figures").inner_text() == figures:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize(("size", "script"), LOOKS)
async def test_rotating(service, browser, axe, size, script):
    """A holder opens the form, rotates its key, and gets a new one with a button that copies it."""
    caller = await service.new_caller("rotor")
    async with signed_in(browser, service, caller.key, size, script) as tab:
        await tab.get_by_role("link", name="Key", exact=True).click()
        button = tab.get_by_role("button", name="Make a new secret")
        assert not await button.is_visible()
        await tab.get_by_text("Rotate the key").click()
        await tab.get_by_label("The old secret goes on working").select_option("for a week")
        await button.click()
        await tab.get_by_role("heading", name="The new key").wait_for()
        secret = await tab.get_by_label("The new secret").inner_text()
        assert secret.startswith("rk_")
        assert secret != caller.key
        assert "The old one works until" in await tab.locator("main").inner_text()
        assert await fits(tab)
        copy = tab.locator("[data-copy]").first
        assert await copy.is_visible() == script
        if script:
            assert await chromium.violations(tab, axe) == {}


@pytest.mark.parametrize(("size", "script"), LOOKS)
async def test_setting_and_removing_an_alias(service, browser, size, script):
    """The operator sets an alias after a mistake, which keeps what was typed, and removes it only
    after a second click."""
    async with signed_in(browser, service, OPERATOR_KEY, size, script) as tab:
        await tab.goto("/dashboard/models?kind=alias")
        await tab.get_by_text("Set an alias").first.click()
        await tab.get_by_label("Name that callers send").fill("fast")
        await tab.get_by_label("Models, the best first").fill("nosuch")
        await tab.get_by_role("button", name="Set the alias").click()
        await tab.get_by_role("alert").wait_for()
        assert "nosuch" in await tab.get_by_role("alert").inner_text()
        assert await tab.get_by_label("Name that callers send").input_value() == "fast"
        assert await fits(tab)
        await tab.get_by_label("Models, the best first").fill(MODEL)
        await tab.get_by_role("button", name="Set the alias").click()
        assert "is set" in await tab.get_by_role("status").inner_text()
        remove = tab.get_by_role("button", name="Remove fast")
        assert not await remove.is_visible()
        await tab.locator("summary", has_text="Remove").click()
        await remove.click()
        assert "is removed" in await tab.get_by_role("status").inner_text()
        tab.faults[:] = [fault for fault in tab.faults if "status of 400" not in fault]


@pytest.mark.parametrize(("size", "script"), LOOKS)
async def test_adding_and_disabling_a_venice_key(service, browser, size, script):
    """The operator adds a key that Venice accepts, and disables it after a second click."""
    name = f"spare-{size['width']}"
    async with signed_in(browser, service, OPERATOR_KEY, size, script) as tab:
        await tab.goto("/dashboard/venice-keys")
        await tab.get_by_label("Name", exact=True).fill(name)
        await tab.get_by_label("Key at Venice").fill("second")
        await tab.get_by_role("button", name="Add and check").click()
        assert "Venice accepts it" in await tab.get_by_role("status").inner_text()
        assert "second" not in await tab.content()
        row = tab.locator("tr", has_text=name)
        assert "well" in await row.inner_text()
        disable = row.get_by_role("button", name=f"Disable {name}")
        assert not await disable.is_visible()
        await row.locator("summary").click()
        await disable.click()
        assert "is disabled" in await tab.get_by_role("status").inner_text()
        assert "disabled" in await tab.locator("tr", has_text=name).inner_text()
        assert await fits(tab)


@pytest.mark.parametrize(("size", "script"), LOOKS)
async def test_filtering_the_audit(service, browser, size, script):
    """Filters are in the URL and stay in the form, and a link checks the whole chain."""
    name = f"audited {size['width']}"
    await service.new_caller(name)
    async with signed_in(browser, service, OPERATOR_KEY, size, script) as tab:
        await tab.goto("/dashboard/audit")
        await tab.get_by_label("Organization").fill(name)
        await tab.get_by_label("What changed").select_option("Keys")
        await tab.get_by_role("button", name="Show").click()
        await tab.wait_for_url("**organization=audited+**")
        assert await tab.get_by_label("Organization").input_value() == name
        assert await tab.locator("tbody tr").count() == 1
        await tab.get_by_role("link", name="Check the whole chain").click()
        assert "holds" in await tab.get_by_role("status").inner_text()
        assert await fits(tab)
