"""Saves a picture of each page of the dashboard, in the looks that people have: see --help."""

import asyncio
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [
    str(ROOT),
    *(str(ROOT / "tests" / part) for part in ("", "dashboard")),
    str(ROOT / "scripts"),
]

import browser as chromium  # noqa: E402
import click  # noqa: E402
import structlog  # noqa: E402
from fill import Plan, fill  # noqa: E402
from postgres import administration, running_server  # noqa: E402
from support import ENCRYPTION_KEY, OPERATOR_KEY, make_settings, running  # noqa: E402
from upstream import running_sandbox  # noqa: E402

from service.crypto import Keyring  # noqa: E402
from service.dashboard.paths import url  # noqa: E402
from service.database import schema  # noqa: E402

LOOKS: Final = [
    (size, scheme) for size in (chromium.WIDE, chromium.PHONE) for scheme in ("light", "dark")
]
OPERATORS: Final = (
    "overview",
    "requests",
    "refusals",
    "organizations",
    "organization",
    "key",
    "models",
    "venice_keys",
    "audit",
    "operations",
    "docs",
)
HOLDERS: Final = ("own",)


@click.command(context_settings={"show_default": True})
@click.option("--directory", default=".screens", help="Where the pictures go.")
@click.option("--only", multiple=True, help="Only pages of these names.")
@click.option("--entries", default=20_000, help="Ledger entries to show.")
@click.option("--window", is_flag=True, help="Only what a window shows, not the whole page.")
def main(directory: str, only: Sequence[str], entries: int, *, window: bool) -> None:
    """Save pictures of all pages, wide and of a phone, light and dark."""
    executable = chromium.find()
    if executable is None:
        raise click.ClickException("There is no Chromium: scripts/browser.sh installs Debian's.")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    asyncio.run(save(executable, Path(directory), only, entries, is_whole=not window))


async def save(
    executable: str, directory: Path, only: Sequence[str], entries: int, *, is_whole: bool
) -> None:
    """Fill a database, serve it and save the pictures."""
    directory.mkdir(exist_ok=True)
    with running_server() as server:
        with administration(server) as connection:
            connection.execute("CREATE DATABASE screens")
        address = dataclasses.replace(server.address, database="screens")
        schema.apply(address)
        plan = Plan(entries=entries, organizations=8, keys=3, months=3)
        await fill(address, Keyring([ENCRYPTION_KEY]), plan)
        async with running_sandbox() as upstream:
            settings = make_settings(address, upstream.url)
            async with running(settings) as service, chromium.running(executable) as browser:
                await _visit(service, browser, directory, only, is_whole=is_whole)


async def _visit(
    service: Any, browser: Any, directory: Path, only: Sequence[str], *, is_whole: bool
) -> None:
    caller = await service.new_caller("Initech")
    path = f"/admin/v1/organizations/{caller.organization_id}/limits"
    for limit in (
        {"unit": "usd", "ceiling": "0.02", "period": "month"},
        {"unit": "requests", "ceiling": 12, "period": "hour", "api_key_id": caller.key_id},
    ):
        await service.operate("POST", path, json=limit)
    for number in range(14):
        async with caller.chat(f"{number}", user=f"user {number % 3}") as response:
            await response.read()
    for _ in range(3):
        async with caller.chat("x", model="llama-3.3-70") as response:
            await response.read()
    # Refusals and roll-ups are written beside the requests.
    await asyncio.sleep(3)
    ids = {"organization": caller.organization_id, "key": caller.key_id}
    for key, names in ((OPERATOR_KEY, OPERATORS), (caller.key, HOLDERS)):
        for size, scheme in LOOKS:
            async with chromium.opened(browser, service.url, size=size, scheme=scheme) as tab:
                await tab.goto(url("sign_in"))
                if not only and key == OPERATOR_KEY:
                    await _shoot(tab, directory, "sign_in", size, scheme, is_whole=is_whole)
                await tab.get_by_label("Key").fill(key)
                await tab.keyboard.press("Enter")
                await tab.wait_for_url(lambda found: "sign-in" not in found)
                for name in names:
                    if not only or name in only:
                        await tab.goto(url(name, **({"id": ids[name]} if name in ids else {})))
                        await _shoot(tab, directory, name, size, scheme, is_whole=is_whole)


async def _shoot(
    tab: Any, directory: Path, name: str, size: dict[str, int], scheme: str, *, is_whole: bool
) -> None:
    path = directory / f"{name}-{size['width']}-{scheme}.png"
    await tab.screenshot(path=path, full_page=is_whole)
    click.echo(f"{path}{''.join(f'  {fault}' for fault in tab.faults)}")
    tab.faults.clear()


if __name__ == "__main__":
    main()
