"""The log of a service on a terminal reads from left to right."""

import asyncio
import re
import sys

import aiohttp
import pytest
from command_line import RIALTO, open_terminal, run

TIME = re.compile(r"\d\d:\d\d:\d\d ")


@pytest.fixture
async def database(tmp_path):
    """A directory with the embedded database, so that a start is not the first."""
    status, _, err = await run(*RIALTO, "migrate", directory=tmp_path)
    assert status == 0, err
    return tmp_path


async def test_the_start_is_quiet_and_ends_with_the_welcome(database):
    """A start on a terminal is at most ten lines, without one for each table, and nothing follows
    the welcome."""
    terminal = await open_terminal(sys.executable, "-m", "service", directory=database, PORT="0")
    await terminal.shows("Ctrl-C stops it.")
    await asyncio.sleep(5)
    after = terminal.raw.partition("Ctrl-C stops it.")[2]
    terminal.type("\x03")
    shown = await terminal.ended()

    assert shown.status == 0
    started = shown.text.partition("\nRialto listens")[0].splitlines()
    assert 5 < len(started) <= 10
    assert all(TIME.match(line) for line in started), started
    assert not re.search(r"\d+/14 ", shown.text)
    assert after.strip() == ""


async def test_a_request_is_a_line(database):
    """A request is one line: time, method, path, status, code, milliseconds, key, model, cost."""
    terminal = await open_terminal(
        sys.executable, "-m", "service", directory=database, columns=200, PORT="0"
    )
    await terminal.shows("Ctrl-C stops it.")
    url = re.search(r"listens on (\S+)", terminal.raw)[1]
    key = re.search(r"demo key +(\S+)", terminal.raw)[1]
    headers = {"Authorization": f"Bearer {key}"}
    body = {"model": "llama-3.3-70b", "messages": [{"role": "user", "content": "Hello"}]}
    async with aiohttp.ClientSession(url, headers=headers) as http:
        async with http.post("/v1/chat/completions", json=body) as response:
            assert response.status == 200
        async with http.post("/v1/chat/completions", json={**body, "model": "nosuch"}) as response:
            assert response.status == 404
    await terminal.shows("404")
    terminal.type("\x03")
    shown = await terminal.ended()

    prefix = re.escape(key[:10])
    assert re.search(
        rf"^\d\d:\d\d:\d\d POST +/v1/chat/completions +200 +[\d.]+ m?s +{prefix} +llama-3.3-70b"
        r" +\$0\.\d+$",
        shown.text,
        re.MULTILINE,
    ), shown.text
    assert re.search(
        rf"^\d\d:\d\d:\d\d POST +/v1/chat/completions +404 model_not_found +[\d.]+ m?s +{prefix}",
        shown.text,
        re.MULTILINE,
    ), shown.text
    assert key not in shown.text.partition("Ctrl-C stops it.")[2]


async def test_details_at_debug(database):
    """With LOG_LEVEL=debug the terminal shows each table."""
    terminal = await open_terminal(
        sys.executable, "-m", "service", directory=database, PORT="0", LOG_LEVEL="debug"
    )
    await terminal.shows("14/14 audit_events")
    terminal.type("\x03")
    assert (await terminal.ended()).status == 0


@pytest.mark.parametrize(("no_color", "has_colors"), [(None, True), ("1", False)])
async def test_colors_of_the_log(database, no_color, has_colors):
    """The log has colours on a terminal unless NO_COLOR is set."""
    terminal = await open_terminal(
        sys.executable, "-m", "service", directory=database, PORT="0", NO_COLOR=no_color
    )
    await terminal.shows("Ctrl-C stops it.")
    terminal.type("\x03")
    shown = await terminal.ended()

    assert ("\x1b[" in shown.raw) is has_colors
