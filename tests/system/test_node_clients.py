"""The Node.js clients, on machines with Node.js."""

import asyncio
import base64
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from message_streams import check_events, streams, translated

pytestmark = pytest.mark.slow

PACKAGES = ("openai@6.49.0", "@anthropic-ai/sdk@1.13.0")
SCRIPT = Path(__file__).with_name("node_clients.mjs")
STREAMS_SCRIPT = Path(__file__).with_name("node_message_streams.mjs")
STREAMS = 500
INSTALL_TIMEOUT_S = 90
CALLS = 11
"""How many of the script's calls are admitted; it leaves the last in the middle."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A directory with the script and the packages."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("there is no Node.js here")
    directory = tmp_path_factory.mktemp("node")
    for script in (SCRIPT, STREAMS_SCRIPT):
        shutil.copy(script, directory)
    try:
        subprocess.run(
            [npm, "install", "--no-audit", "--no-fund", *PACKAGES],
            cwd=directory,
            check=True,
            capture_output=True,
            timeout=INSTALL_TIMEOUT_S,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"npm cannot install the clients: {error}")
    return directory


async def test_node_clients(installed, caller):
    """The clients parse the response of each call, and each call has its entry."""
    process = await asyncio.create_subprocess_exec(
        "node",
        SCRIPT.name,
        caller.service.url,
        caller.key,
        cwd=installed,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()

    assert process.returncode == 0, err.decode()
    assert json.loads(out) == {
        "plain": 12,
        "streamed": 12,
        "response": 12,
        "dimensions": 1024,
        "heard": True,
        "edited": "PNG",
        "refused": ["NotFoundError", "model_not_found"],
        "message": ["end_turn", 12],
        "messageStream": ["end_turn", 12],
        "tool": ["tool_use", "look", {}],
        "messageRefused": ["NotFoundError", "not_found_error"],
    }
    async with asyncio.timeout(5):
        while len(entries := await caller.entries()) < CALLS:
            await asyncio.sleep(0.05)
    outcomes = [entry["outcome"] for entry in entries]
    assert outcomes[0] == "client_closed"
    await caller.service.audit()


def many_streams():
    """Message events that are made of random, odd and broken streams; the same in each run."""
    made = []

    @settings(
        max_examples=STREAMS,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(streams(), st.booleans())
    def make(chunks, with_thinking):
        made.append(translated(chunks, with_thinking=with_thinking))

    make()
    return made


async def test_the_sdk_of_node_accumulates_every_stream(installed):
    """Anthropic's SDK for Node.js reads the blocks of every stream, or the error at its end."""
    made = many_streams()
    process = await asyncio.create_subprocess_exec(
        "node",
        STREAMS_SCRIPT.name,
        cwd=installed,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    lines = b"\n".join(base64.b64encode(events) for events in made)
    async with asyncio.timeout(120):
        out, err = await process.communicate(lines)

    assert process.returncode == 0, err.decode()
    results = [json.loads(line) for line in out.splitlines()]
    assert len(results) == len(made) >= STREAMS
    for events, result in zip(made, results, strict=True):
        blocks, last = check_events(events)
        if last["type"] == "error":
            assert result == {"error": "APIError"}
            continue
        assert result["stop_reason"] == last["delta"]["stop_reason"]
        assert [block["type"] for block in result["content"]] == [block["type"] for block in blocks]
        for block, theirs in zip(blocks, result["content"], strict=True):
            for name in ("text", "thinking", "signature", "id", "name"):
                assert block.get(name) == theirs.get(name)
