"""Fixtures of the dashboard's tests."""

import pytest

pytest.importorskip("playwright", reason="requirements/development.txt has it")

import browser as chromium
import furnished
import installed


@pytest.fixture(scope="module")
async def furnished_service(module_service):
    """A service with organizations, keys, limits and calls, for tests that change none of them."""
    return await furnished.furnish(await module_service.get())


@pytest.fixture(scope="module")
async def browser():
    """Chromium. Tests are skipped where there is none."""
    executable = chromium.find()
    if executable is None:
        pytest.skip("There is no Chromium: scripts/browser.sh installs Debian's.")
    async with chromium.running(executable) as started:
        yield started


@pytest.fixture(scope="session")
def axe():
    """The script of axe-core. Tests are skipped where npm's registry is out of reach."""
    try:
        return chromium.axe_script()
    except installed.CannotInstallError as error:
        pytest.skip(f"axe-core cannot be installed: {error}")
