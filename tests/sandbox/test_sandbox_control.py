"""The sandbox's record of calls, and its control over HTTP."""

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from sandbox_client import CHAT, Client, asking, last_call, refused

from service.sandbox import CALLS, FAULTS, FaultKind, Faults
from service.sandbox.calls import MAX_BODY_KEPT_BYTES, MAX_CALLS, Call, Calls

ROOT = Path(__file__).resolve().parents[2]


async def test_calls(venice: Client) -> None:
    """The record has the calls that reached the sandbox, with case-insensitive headers and
    unchanged bodies."""
    body = b'{"model": "default",  "messages": [{"role":"user","content":"hi"}]}'
    headers = {"Content-Type": "application/json", "X-Trace": "7"}
    await venice.post(f"{CHAT}?a=b", data=body, headers=headers)

    call = last_call(venice)
    assert (call.method, call.path, call.query) == ("POST", "/chat/completions", {"a": "b"})
    assert (call.body, call.body_bytes) == (body, len(body))
    assert call.headers["x-trace"] == "7"
    assert call.headers["authorization"] == "Bearer sandbox"
    assert (call.status, call.cut_at) == (200, None)
    assert venice.app[CALLS].to("/chat/completions") == [call]


def test_calls_are_bounded() -> None:
    """The record drops the oldest calls beyond a number and a size, and keeps the sums."""
    calls = Calls()
    for number in range(MAX_CALLS + 10):
        call = Call(method="GET", path=str(number), query={}, headers={}, received_at=0.0)
        call.record_body(b"x" * (MAX_BODY_KEPT_BYTES + 1 if number > MAX_CALLS else 1))
        calls.add(call)
    assert (len(calls), calls[0].path, calls.received) == (MAX_CALLS, "10", MAX_CALLS + 10)
    assert (len(calls[-1].body), calls[-1].body_bytes) == (
        MAX_BODY_KEPT_BYTES,
        MAX_BODY_KEPT_BYTES + 1,
    )
    for _ in range(1100):
        call = Call(method="GET", path="/", query={}, headers={}, received_at=0.0)
        call.record_body(b"x" * MAX_BODY_KEPT_BYTES)
        calls.add(call)

    assert len(calls) == 1024


async def test_control_over_http(venice: Client) -> None:
    """Faults can be pushed, listed and cleared over HTTP, and held calls released."""
    fault = {"path": CHAT, "kind": "barrier", "times": 1}
    async with venice.put("/sandbox/faults", json=fault) as response:
        listed = (await response.json())["faults"]
    held = asyncio.create_task(refused(venice, asking()))
    await venice.app[FAULTS].wait_held(1)
    async with venice.get("/sandbox/faults") as response:
        assert (await response.json())["held"] == 1
    async with venice.post("/sandbox/release") as response:
        assert await response.json() == {"released": 1}
    await venice.put("/sandbox/faults", json={"kind": "timeout"})
    async with venice.delete("/sandbox/faults") as response:
        assert (await response.json())["faults"] == []

    assert listed[0]["path"] == "/chat/completions"
    assert listed[0]["times"] == 1
    assert (await held)[0] == 200


@pytest.mark.parametrize(
    ("fault", "field", "rule"),
    [
        ({"kind": "nope"}, "kind", "enum"),
        ({}, "kind", "required"),
        ({"kind": "cut", "after": -1}, "after", ">= 0"),
        ({"kind": "cut", "times": 0}, "times", ">= 1"),
        ({"kind": "hang", "seconds": 601}, "seconds", "<= 600"),
        ({"kind": "cut", "path": "chat"}, "path", "regex"),
        ({"kind": "cut", "tmies": 1}, "tmies", "unknown"),
    ],
)
async def test_invalid_faults(venice: Client, fault: dict[str, Any], field: str, rule: str) -> None:
    """An invalid fault is a 400 that names the field and the rule."""
    async with venice.put("/sandbox/faults", json=fault) as response:
        error = (await response.json())["error"]

    assert response.status == 400
    assert field in error
    assert rule in error.lower()


def test_an_invalid_fault_in_python() -> None:
    """An invalid fault raises in Python and is not kept."""
    faults = Faults()
    with pytest.raises(msgspec.ValidationError, match="after"):
        faults.push("/models", FaultKind.CUT, after=-1)

    assert faults.pending() == []


async def test_calls_over_http(venice: Client) -> None:
    """Recorded calls are listed over HTTP without the key, and an invalid limit is a 400."""
    for _ in range(3):
        await venice.post(CHAT, json=asking())
    async with venice.get("/sandbox/calls?limit=2") as response:
        text = await response.text()
    async with venice.get("/sandbox/calls?limit=0") as bad:
        assert "limit" in (await bad.json())["error"]

    assert "Bearer" not in text
    assert (json.loads(text)["received"], len(json.loads(text)["calls"])) == (3, 2)
    assert bad.status == 400


async def test_standalone() -> None:
    """As a program the sandbox prints one line with its address, and ends at SIGTERM even during a
    call."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service.sandbox", "--port", "0", "--key", "mine"),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode()
    url = next(word for word in line.split() if word.startswith("http"))
    headers = {"Authorization": "Bearer mine"}
    async with aiohttp.ClientSession(headers=headers) as session:
        async with session.get(f"{url}/api_keys/rate_limits") as response:
            assert response.status == 200
        await session.put(
            url.replace("/api/v1", "/sandbox/faults"), json={"kind": "hang", "times": 1}
        )
        held = asyncio.create_task(session.post(f"{url}/chat/completions", json=asking()))
        await asyncio.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        await asyncio.wait({held}, timeout=5)
        held.exception()

    assert await asyncio.wait_for(process.wait(), 5) == 0
    assert await process.stdout.read() == b""


async def test_models_are_changed(venice: Client) -> None:
    """A model can be changed, removed from every list, and restored; an invalid change is a 400."""

    async def listed(path: str = "") -> Any:
        async with venice.get(f"/api/v1/models{path}") as response:
            return await response.json()

    model, pricing = "zai-org-glm-5-1", {"input": {"usd": 9, "diem": 9}}
    before = await listed()
    async with venice.put(f"/sandbox/models/{model}", json={"pricing": pricing}) as response:
        assert await response.json() == {"changed": {model: {"pricing": pricing}}}
    entry = (await listed())["data"][0]
    assert (entry["id"], entry["model_spec"]["pricing"]) == (model, pricing)
    assert entry["model_spec"]["traits"] == before["data"][0]["model_spec"]["traits"]
    async with venice.delete(f"/sandbox/models/{model}") as response:
        assert response.status == 200
    assert model not in str([await listed(), await listed("?type=all"), await listed("/traits")])
    async with venice.delete("/sandbox/models") as response:
        assert await response.json() == {"changed": {}}
    assert await listed() == before

    for path, body in (("unheard-of", b"{}"), (model, b"[]"), (model, b"{")):
        async with venice.put(f"/sandbox/models/{path}", data=body) as response:
            assert response.status == 400
    async with venice.delete("/sandbox/models/unheard-of") as response:
        assert response.status == 400
