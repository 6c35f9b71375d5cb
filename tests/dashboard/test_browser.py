"""The pages in Chromium: for everybody to use, on a phone, in the dark, and without a script."""

import asyncio

import browser as chromium
import pytest
from furnished import HOSTILE
from support import OPERATOR_KEY
from visits import forget_attempts

from service.dashboard.routes import ROUTES
from service.dashboard.sessions import COOKIE, COOKIE_PATH

pytestmark = [pytest.mark.shares_service, pytest.mark.browser]

ROLES = ("operator", "admin", "inference")
SHOWN = [route for route in ROUTES if not route.is_form and route.page != "missing"]
LOOKS = [("light", chromium.WIDE), ("dark", chromium.WIDE), ("light", chromium.PHONE)]
MAX_LOADED_BYTES = 150_000


def name_of(route):
    """The id of a parameter."""
    return route.page


def role_of(route):
    """The role that sees most of the page."""
    return next((role for role in ROLES if role in route.roles), "operator")


@pytest.fixture(scope="module")
async def cookies(furnished_service):
    """A session for each role."""
    url = furnished_service.service.url
    made = {}
    for role in ROLES:
        forget_attempts(furnished_service.service)
        async with furnished_service.service.http.post(
            "/dashboard/sign-in",
            data={"key": furnished_service.key_of(role)},
            headers={"Sec-Fetch-Site": "same-origin"},
            allow_redirects=False,
        ) as answer:
            value = answer.cookies[COOKIE].value
        made[role] = {"name": COOKIE, "value": value, "url": f"{url}{COOKIE_PATH}"}
    return made


@pytest.mark.parametrize("route", SHOWN, ids=name_of)
async def test_a_page_is_for_everybody(furnished_service, browser, axe, cookies, route):
    """In every look axe finds nothing on a page and the page is never wider than the window;
    nothing on it fails or is refused, and no hostile name runs."""
    url = furnished_service.service.url
    async with chromium.opened(browser, url, cookies=[cookies[role_of(route)]]) as tab:
        answer = await tab.goto(furnished_service.url(route.page), wait_until="load")
        assert answer.status == 200
        await tab.evaluate("document.querySelectorAll('details').forEach((one) => one.open = true)")
        for scheme, size in LOOKS:
            await tab.set_viewport_size(size)
            await tab.emulate_media(color_scheme=scheme)
            widths = await tab.evaluate(
                "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
            )
            found = await chromium.violations(tab, axe)

            assert found == {}, (scheme, size)
            assert widths[0] <= widths[1], (scheme, size)
        assert tab.faults == []


@pytest.mark.parametrize("route", SHOWN, ids=name_of)
async def test_a_page_is_light(furnished_service, browser, cookies, route):
    """A page, with all that it loads, has less than 150 kB."""
    loaded = {}
    async with chromium.opened(
        browser, furnished_service.service.url, cookies=[cookies[role_of(route)]]
    ) as tab:

        async def weigh(response):
            if response.status == 200:
                loaded[response.url] = len(await response.body())

        tab.on("response", weigh)
        answer = await tab.goto(furnished_service.url(route.page), wait_until="networkidle")
        await asyncio.sleep(0.1)

        assert answer.status == 200
        assert len(loaded) >= 3
        assert 0 < sum(loaded.values()) < MAX_LOADED_BYTES


@pytest.mark.parametrize("script", [True, False], ids=["script", "no-script"])
async def test_signing_in_by_keyboard(furnished_service, browser, script):
    """Somebody signs in and out with the keyboard alone, with and without scripts."""
    service = furnished_service.service
    forget_attempts(service)
    async with chromium.opened(browser, service.url, script=script) as tab:
        await tab.goto("/dashboard/operations")
        await tab.get_by_label("Key").focus()
        await tab.keyboard.type("wrong")
        await tab.keyboard.press("Enter")
        await tab.get_by_role("alert").wait_for()
        assert "malformed" in await tab.get_by_role("alert").inner_text()
        await tab.get_by_label("Key").fill(OPERATOR_KEY)
        await tab.keyboard.press("Enter")
        await tab.wait_for_url("**/dashboard/operations")
        assert await tab.title() == "Operations · Rialto"
        current = tab.get_by_role("navigation").locator("[aria-current=page]")
        assert await current.inner_text() == "Operations"
        await tab.get_by_role("button", name="Sign out").press("Enter")
        await tab.wait_for_url("**/dashboard/sign-in*")
        assert "signed out" in await tab.get_by_role("status").inner_text()


async def test_the_skip_link_leads_to_the_content(furnished_service, browser, cookies):
    """The first stop of the keyboard leads past the navigation."""
    async with chromium.opened(
        browser, furnished_service.service.url, cookies=[cookies["operator"]]
    ) as tab:
        await tab.goto("/dashboard/operations")
        await tab.keyboard.press("Tab")
        focused = tab.locator(":focus")
        assert await focused.inner_text() == "Skip to the content"
        assert await focused.is_visible()
        await tab.keyboard.press("Enter")
        assert await tab.evaluate("document.activeElement.id") == "content"


async def test_focus_is_visible(furnished_service, browser, cookies):
    """Each stop of the keyboard in the head of a page has an outline."""
    async with chromium.opened(
        browser, furnished_service.service.url, cookies=[cookies["operator"]]
    ) as tab:
        await tab.goto("/dashboard/operations")
        for _ in range(6):
            await tab.keyboard.press("Tab")
            style = await tab.evaluate(
                "(() => { const s = getComputedStyle(document.activeElement);"
                " return [s.outlineStyle, s.outlineWidth]; })()"
            )
            assert style[0] != "none"
            assert style[1] != "0px"


async def test_live_parts_load_again(furnished_service, browser, cookies):
    """A live part shows what is new without a reload of the page."""
    async with chromium.opened(
        browser, furnished_service.service.url, cookies=[cookies["operator"]]
    ) as tab:
        await tab.clock.install()
        await tab.goto("/dashboard/operations")
        region = tab.locator("#process-facts")
        await region.evaluate("(element) => { element.textContent = 'old'; }")
        await tab.clock.run_for(6_000)
        async with asyncio.timeout(15):
            while await region.text_content() == "old":
                await asyncio.sleep(0.1)
        assert "Version" in await region.inner_text()
        assert tab.faults == []


async def test_dark_pages_are_dark(furnished_service, browser, cookies):
    """The colours follow the browser's scheme."""
    grounds = {}
    for scheme in ("light", "dark"):
        async with chromium.opened(
            browser,
            furnished_service.service.url,
            scheme=scheme,
            cookies=[cookies["operator"]],
        ) as tab:
            await tab.goto("/dashboard")
            colour = await tab.evaluate("getComputedStyle(document.body).backgroundColor")
            grounds[scheme] = sum(int(part) for part in colour[4:-1].split(","))

    assert grounds["light"] > 3 * 200
    assert grounds["dark"] < 3 * 60


async def test_another_sites_form_is_refused(furnished_service, browser, cookies):
    """A form on a page of another origin, sent by a browser that has signed in, changes nothing."""
    service = furnished_service.service
    async with chromium.opened(browser, service.url, cookies=[cookies["operator"]]) as tab:
        page = f"""
            <form id=f method=post action="{service.url}/dashboard/sign-out">
            <input name=csrf value=x></form>
        """
        await tab.set_content(page)
        async with tab.expect_navigation():
            await tab.evaluate("document.getElementById('f').submit()")
        assert "own" in await tab.locator("main").inner_text()
        await tab.goto("/dashboard/operations")
        assert await tab.title() == "Operations · Rialto"


def test_hostile_names_would_be_noticed():
    """The hostile name runs a script where a page does not escape it."""
    assert "<script>alert(1)</script>" in HOSTILE
