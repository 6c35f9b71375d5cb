"""The exact effect of each of the sandbox's faults."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sandbox_client import (
    CHAT,
    Client,
    StartClient,
    asking,
    eventually,
    last_call,
    push,
    refused,
    stream,
)

from service.sandbox import CALLS, FAULTS, FaultKind, create_sandbox


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        (FaultKind.RATE_LIMITED, 429, "RATE_LIMIT_EXCEEDED"),
        (FaultKind.MODEL_OVERLOADED, 429, "MODEL_OVERLOADED"),
        (FaultKind.ERROR_BUDGET, 429, None),
        (FaultKind.INSUFFICIENT_BALANCE, 402, "INSUFFICIENT_BALANCE"),
        (FaultKind.KEY_SPEND_LIMIT, 402, None),
        (FaultKind.INVALID_KEY, 401, None),
        (FaultKind.INFERENCE_FAILED, 500, "INFERENCE_FAILED"),
        (FaultKind.BAD_GATEWAY, 502, None),
        (FaultKind.AT_CAPACITY, 503, "MODEL_AT_CAPACITY"),
        (FaultKind.TIMEOUT, 504, "REQUEST_TIMEOUT"),
        (FaultKind.CONTENT_POLICY, 422, None),
        (FaultKind.DETAILED, 400, None),
        (FaultKind.TOO_LARGE, 413, "PAYLOAD_TOO_LARGE"),
        (FaultKind.PRIVACY_RESTRICTED, 403, "MODEL_PRIVACY_RESTRICTED"),
        (FaultKind.RETIRED, 410, None),
        (FaultKind.WALLET_REQUIRED, 402, None),
    ],
)
async def test_refusals(venice: Client, kind: FaultKind, status: int, code: str | None) -> None:
    """A refusing fault has Venice's status, text and code, and costs nothing."""
    push(venice, kind, times=1)

    async with venice.post(CHAT, json=asking(stream=True)) as response:
        body = await response.json()

    assert response.status == status
    assert isinstance(body["error"], str)
    assert body.get("code") == code
    assert last_call(venice).charged_nanos == 0
    assert last_call(venice).status == status


@pytest.mark.parametrize(
    ("kind", "status", "stated"),
    [
        (FaultKind.CONTENT_POLICY, 422, {"suggested_prompt": "A simulated landscape"}),
        (FaultKind.DETAILED, 400, {"details": "A text and no object"}),
        (FaultKind.WALLET_REQUIRED, 402, {"x402Version": 2}),
        (FaultKind.NEEDS_CONSENT, 409, {"error": {"code": "needs_consent"}}),
        (FaultKind.NEEDS_CONSENT, 409, {"consent_flow": "simulated"}),
    ],
)
async def test_formats_of_refusals(
    venice: Client, kind: FaultKind, status: int, stated: dict[str, Any]
) -> None:
    """Refusals do not have one format: these have members that others lack."""
    push(venice, kind)
    answer, body = await refused(venice, asking())

    assert answer == status
    assert body.items() >= stated.items()


async def test_refusal_in_openais_format(venice: Client) -> None:
    """One refusal is an object as OpenAI's are."""
    push(venice, FaultKind.CONTEXT_LENGTH)
    status, body = await refused(venice, asking())

    assert status == 400
    assert body["error"]["code"] == "context_length_exceeded"
    assert body["error"]["type"] == "invalid_request_error"


async def test_edge_page(venice: Client) -> None:
    """A refusal by the edge is an HTML page of the given status, and costs nothing."""
    for status in (403, 502):
        venice.app[FAULTS].push(CHAT, FaultKind.EDGE_PAGE, times=1, status=status)
        async with venice.post(CHAT, json=asking()) as response:
            assert (response.status, response.content_type) == (status, "text/html")
    assert [call.charged_nanos for call in venice.app[CALLS]] == [0, 0]


async def test_content_violation(venice: Client) -> None:
    """A withheld image is marked by a header and costs nothing."""
    venice.app[FAULTS].push("*", FaultKind.CONTENT_VIOLATION)
    asked = {"model": "venice-sd35", "prompt": "a fox"}
    for path in ("/image/generate", "/images/generations"):
        async with venice.post(f"/api/v1{path}", json=asked) as response:
            assert response.status == 200
            assert response.headers["x-venice-is-content-violation"] == "true"

    assert [call.charged_nanos for call in venice.app[CALLS]] == [0, 0]


async def test_job_failed(venice: Client) -> None:
    """A failed job reports that when it is retrieved, with its refund."""
    asked = {"model": "wan-2.5-preview-text-to-video", "duration": "5s", "prompt": "a fox"}
    async with venice.post("/api/v1/video/queue", json=asked) as response:
        queue_id = (await response.json())["queue_id"]
    venice.app[FAULTS].push("/video/retrieve", FaultKind.JOB_FAILED)
    ticket = {"model": asked["model"], "queue_id": queue_id}
    status, body = await refused(venice, ticket, "/api/v1/video/retrieve")

    assert status == 422
    assert body["error"]["credits_refunded"] is True
    assert body["error"]["type"] == "provider_content_policy"


async def test_fault_of_one_key(aiohttp_client: StartClient) -> None:
    """A fault may apply to one key, and to some of its calls."""
    client = await aiohttp_client(create_sandbox(["good", "bad"]))
    client.app[FAULTS].push("*", FaultKind.AT_CAPACITY, key="bad", chance=0.5)

    async def statuses(key: str) -> set[int]:
        headers = {"Authorization": f"Bearer {key}"}
        answers = [await client.post(CHAT, json=asking(), headers=headers) for _ in range(40)]
        return {answer.status for answer in answers}

    assert await statuses("good") == {200}
    assert await statuses("bad") == {200, 503}


async def test_families_of_headers(venice: Client) -> None:
    """The three kinds of 429 differ in their headers."""
    push(venice, FaultKind.RATE_LIMITED, times=1)
    push(venice, FaultKind.MODEL_OVERLOADED, times=1, retry_after=7, message="busy")
    push(venice, FaultKind.ERROR_BUDGET, times=1)
    answers = [await venice.post(CHAT, json=asking()) for _ in range(3)]
    limited, overloaded, budget = (answer.headers for answer in answers)

    assert limited["x-ratelimit-remaining-requests"] == "0"
    assert [("Retry-After" in headers) for headers in (limited, overloaded, budget)] == [
        False,
        True,
        False,
    ]
    assert overloaded["Retry-After"] == "7"
    assert (await answers[1].json())["error"] == "busy"
    assert budget["x-ratelimit-remaining"] == "0"
    assert int(budget["x-ratelimit-resets"]) > time.time() * 1000


async def test_order_times_and_paths(venice: Client) -> None:
    """Faults apply to their path in the order in which they were pushed, so many times each."""
    faults = venice.app[FAULTS]
    faults.push("/embeddings", "timeout")
    faults.push("/chat/completions", "at_capacity", times=2)
    faults.push("*", "bad_gateway", times=1)
    statuses = [(await venice.post(CHAT, json=asking())).status for _ in range(4)]

    assert statuses == [503, 503, 502, 200]
    assert [fault.path for fault in faults.pending()] == ["/embeddings"]
    faults.clear()
    assert faults.pending() == []


async def test_the_last_of_a_rate(venice: Client) -> None:
    """A response that uses up a rate is successful and states remainder and reset time in its
    headers."""
    push(venice, FaultKind.RATE_SPENT, times=1, seconds=30)
    spent, after = [await venice.post(CHAT, json=asking()) for _ in range(2)]

    assert (spent.status, spent.headers["x-ratelimit-remaining-requests"]) == (200, "0")
    reset_s = int(spent.headers["x-ratelimit-reset-requests"]) / 1000 - time.time()
    assert 20 < reset_s <= 30
    assert int(after.headers["x-ratelimit-remaining-requests"]) > 0


@pytest.mark.parametrize("kind", [FaultKind.HANG, FaultKind.BARRIER])
async def test_held_until_release(venice: Client, kind: FaultKind) -> None:
    """Held calls are answered together when they are released."""
    push(venice, kind)
    faults = venice.app[FAULTS]
    calls = [asyncio.create_task(refused(venice, asking())) for _ in range(5)]
    await faults.wait_held(5)

    assert not any(call.done() for call in calls)
    faults.clear() if kind is FaultKind.HANG else faults.release()
    assert [status for status, _ in await asyncio.gather(*calls)] == [200] * 5
    assert (faults.held, faults.pending()) == (0, [])


async def test_hang_and_leave(venice: Client) -> None:
    """A client that leaves a hanging call is recorded at once."""
    push(venice, FaultKind.HANG)
    with pytest.raises(TimeoutError):
        await venice.post(CHAT, json=asking(), timeout=aiohttp.ClientTimeout(total=0.1))
    await eventually(lambda: venice.app[FAULTS].held == 0)

    call = last_call(venice)
    assert call.cut_at is not None
    assert 0.05 < call.cut_at - call.received_at < 2


async def test_hang_ends(venice: Client) -> None:
    """A hang ends after its time with a dropped connection."""
    push(venice, FaultKind.HANG, seconds=0.05)
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await venice.post(CHAT, json=asking())

    assert (last_call(venice).is_dropped, last_call(venice).cut_at) == (True, None)


async def test_disconnect(venice: Client) -> None:
    """A disconnect closes the connection without a byte."""
    push(venice, FaultKind.DISCONNECT)
    with pytest.raises(aiohttp.ClientConnectionError):
        await venice.post(CHAT, json=asking())

    assert (last_call(venice).is_dropped, last_call(venice).cut_at) == (True, None)


@pytest.mark.parametrize("after", [0, 1, 3, 4])
async def test_cut(venice: Client, after: int) -> None:
    """A cut stream has so many chunks and no end, and what was sent is charged."""
    push(venice, FaultKind.CUT, after=after)
    received = b""
    async with venice.post(CHAT, json=asking("[tokens=4]", stream=True)) as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            async for piece in response.content.iter_any():
                received += piece

    assert received.count(b"data: ") == after
    assert b"usage" not in received
    assert (last_call(venice).is_dropped, last_call(venice).cut_at) == (True, None)
    assert (last_call(venice).charged_nanos > 0) is (after > 0)


async def test_cut_plain(venice: Client) -> None:
    """A cut plain response ends in its middle."""
    push(venice, FaultKind.CUT)
    async with venice.post(CHAT, json=asking()) as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()

    assert response.status == 200


async def test_stall(venice: Client) -> None:
    """A stalled stream stays open after its chunks and continues when it is released."""
    push(venice, FaultKind.STALL, after=2, times=1)
    async with venice.post(CHAT, json=asking("[tokens=4]", stream=True)) as response:
        received = b""
        while received.count(b"\n\n") < 2:
            received += await response.content.readany()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(response.content.readany(), 0.1)
        venice.app[FAULTS].release()
        received += await response.read()

    assert received.count(b"data: ") == 6
    assert received.endswith(b"data: [DONE]\n\n")


async def test_client_leaves_stream(venice: Client) -> None:
    """A client that leaves a running stream is recorded, and the tokens it received are charged."""
    async with venice.post(CHAT, json=asking("[tokens=999][delay=0.01]", stream=True)) as response:
        await response.content.readany()
        response.close()
    await eventually(lambda: last_call(venice).finished_at)

    call = last_call(venice)
    assert call.cut_at is not None
    assert 0 < call.charged_nanos < 999 * 2750


async def test_in_band_error(venice: Client) -> None:
    """An in-band error is an error event and [DONE] in a stream with status 200, and a 500 for a
    plain call."""
    push(venice, FaultKind.IN_BAND_ERROR, after=2, message="broken")
    events = await stream(venice)
    status, body = await refused(venice, asking())

    assert len(events) == 4
    assert events[2]["error"]["message"] == "broken"
    assert {"message", "type", "code"} <= events[2]["error"].keys()
    assert events[3] == "[DONE]"
    assert (status, body) == (500, {"error": "broken"})


async def test_slow_bytes(venice: Client) -> None:
    """Slow bytes split events in the middle of a line and lose none."""
    push(venice, FaultKind.SLOW_BYTES)
    async with venice.post(CHAT, json=asking("[tokens=2]", stream=True)) as response:
        pieces = [piece async for piece in response.content.iter_any()]

    assert max(map(len, pieces)) < 200
    assert any(not piece.endswith(b"\n\n") for piece in pieces)
    assert b"".join(pieces).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("kind", "stated"), [(FaultKind.MISSING_USAGE, set()), (FaultKind.MISSING_COST, {"usage"})]
)
async def test_missing_usage(venice: Client, kind: FaultKind, stated: set[str]) -> None:
    """Usage and cost may be missing, plain and streamed, and are charged anyway."""
    push(venice, kind)
    events = await stream(venice)
    async with venice.post(CHAT, json=asking("[tokens=4]")) as response:
        plain = await response.json()

    names = {"usage", "cost"}
    streamed = set().union(*(event.keys() & names for event in events[:-1]))
    assert streamed == plain.keys() & names == stated
    assert events[-1] == "[DONE]"
    assert [call.charged_nanos > 0 for call in venice.app[CALLS]] == [True, True]


async def test_garbage(venice: Client) -> None:
    """Garbage is a 200 that claims to be JSON and is not."""
    push(venice, FaultKind.GARBAGE)
    async with venice.post(CHAT, json=asking()) as response:
        with pytest.raises(json.JSONDecodeError):
            await response.json()

    assert response.status == 200


async def test_slow_headers(venice: Client) -> None:
    """Slow headers arrive so many seconds later."""
    push(venice, FaultKind.SLOW_HEADERS, seconds=0.15)
    started = time.monotonic()
    async with venice.post(CHAT, json=asking()) as response:
        assert response.status == 200

    assert time.monotonic() - started >= 0.15


def test_every_kind_is_tested() -> None:
    """Each kind of fault has a test in this file."""
    text = "".join(file.read_text() for file in Path(__file__).parent.glob("test_*.py"))

    assert [kind.name for kind in FaultKind if f"FaultKind.{kind.name}" not in text] == []
    assert all(kind.doc.endswith(".") for kind in FaultKind)
