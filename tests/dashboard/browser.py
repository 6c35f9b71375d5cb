"""Chromium for the tests, and axe-core, which checks that everybody can use a page."""

import contextlib
import os
import shutil
import sys
from pathlib import Path

import playwright.async_api

sys.path.append(str(Path(__file__).resolve().parents[1] / "clients"))

import installed

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
AXE = installed.DIRECTORY / "node_modules" / "axe-core" / "axe.min.js"
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
"""Chromium asks its maker's hosts for nothing. Root, as in a container, has no sandbox."""
WIDE = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}


def find():
    """Return the path of a Chromium, or None."""
    stated = os.environ.get("CHROMIUM")
    return stated or next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.asynccontextmanager
async def running(executable):
    """Run Chromium without a window."""
    async with playwright.async_api.async_playwright() as started:
        browser = await started.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            await browser.close()


@contextlib.asynccontextmanager
async def opened(browser, base_url, *, size=WIDE, scheme="light", script=True, cookies=()):
    """Open an empty tab, of a browser that nobody used before.

    ``faults`` of the tab collects what the page must not do: errors of scripts, refused resources,
    answers with a status of 400 or more.
    """
    context = await browser.new_context(
        base_url=base_url,
        viewport=size,
        color_scheme=scheme,
        java_script_enabled=script,
        locale="en-GB",
        timezone_id="UTC",
    )
    context.set_default_timeout(15_000)
    if cookies:
        await context.add_cookies(list(cookies))
    tab = await context.new_page()
    tab.faults = []
    tab.on("pageerror", lambda error: tab.faults.append(f"error: {error}"))
    tab.on(
        "console",
        lambda line: tab.faults.append(line.text) if line.type in ("error", "warning") else None,
    )
    tab.on("dialog", lambda dialog: tab.faults.append(f"dialog: {dialog.message}"))
    try:
        yield tab
    finally:
        await context.close()


def axe_script():
    """Return axe-core's script, installed from npm once.

    :raises CannotInstallError: when the registry cannot be used.
    """
    installed.install()
    return AXE.read_text()


async def violations(tab, script):
    """Return the rules of axe-core that the page breaks, each with the elements."""
    # The page's policy refuses scripts that are not its own, so the browser runs it beside them.
    if not await tab.evaluate("'axe' in window"):
        await tab.evaluate(script)
    result = await tab.evaluate("axe.run()")
    return {
        found["id"]: [" ".join(node["target"]) for node in found["nodes"]]
        for found in result["violations"]
    }
