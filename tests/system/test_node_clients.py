"""The Node.js clients, on machines with Node.js."""

import asyncio
import json
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PACKAGES = ("openai@6.49.0", "@anthropic-ai/sdk@1.13.0")
SCRIPT = Path(__file__).with_name("node_clients.mjs")
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
    shutil.copy(SCRIPT, directory)
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
