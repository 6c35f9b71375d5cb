"""What the SDKs for Node.js do beside the matrix: sound, images, embeddings, a stream left."""

import asyncio

import pytest
from client_process import running_client

pytestmark = [pytest.mark.clients, pytest.mark.slow, pytest.mark.timeout(900)]

CALLS = 11
"""How many of the program's calls are admitted; it leaves the last in the middle."""


async def test_node_sdks(caller, tmp_path):
    """The clients parse the response of each call, and each call has its entry."""
    async with running_client("node_sdks.mjs", tmp_path) as client:
        answer = await client.ask(action="all", url=caller.service.url, key=caller.key)

    assert answer == {
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
