"""What the SDKs for Node.js do beside the matrix: sound, images, embeddings, a stream left."""

import asyncio
import base64

import pytest
from client_process import running_client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from message_streams import check_events, streams, translated

pytestmark = [pytest.mark.clients, pytest.mark.slow, pytest.mark.timeout(900)]

STREAMS = 500
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


async def test_the_sdk_of_node_accumulates_every_stream(tmp_path):
    """Anthropic's SDK for Node.js reads the blocks of every stream, or the error at its end."""
    made = many_streams()
    async with running_client("message_streams.mjs", tmp_path) as client:
        results = [
            await client.ask(action="accumulate", events=base64.b64encode(events).decode())
            for events in made
        ]

    assert len(results) == len(made) >= STREAMS
    for events, result in zip(made, results, strict=True):
        blocks, last = check_events(events)
        if last["type"] == "error":
            assert result["error"]["kind"] == "APIError"
            continue
        assert result["stop_reason"] == last["delta"]["stop_reason"]
        assert [block["type"] for block in result["content"]] == [block["type"] for block in blocks]
        for block, theirs in zip(blocks, result["content"], strict=True):
            for name in ("text", "thinking", "signature", "id", "name"):
                assert block.get(name) == theirs.get(name)
