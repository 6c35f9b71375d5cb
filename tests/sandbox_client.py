"""Helpers of the sandbox's tests: its clients, requests and streams."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import aiohttp
from aiohttp.test_utils import TestClient

from service.sandbox import CALLS, FAULTS, FaultKind
from service.sandbox.calls import Call

CHAT = "/api/v1/chat/completions"
KEY = {"Authorization": "Bearer sandbox"}

Client = TestClient[Any, Any]
StartClient = Callable[..., Awaitable[Client]]


def asking(text: str = "hello there", **fields: Any) -> dict[str, Any]:
    return {"model": "default", "messages": [{"role": "user", "content": text}], **fields}


def push(venice: Client, kind: FaultKind, **options: Any) -> None:
    venice.app[FAULTS].push("/chat/completions", kind, **options)


def last_call(venice: Client) -> Call:
    return venice.app[CALLS][-1]


async def refused(venice: Client, body: dict[str, Any], path: str = CHAT) -> tuple[int, Any]:
    async with venice.post(path, json=body) as response:
        return response.status, await response.json()


async def events_of(response: aiohttp.ClientResponse) -> list[Any]:
    """Return the events of a stream; ``[DONE]`` stays a string."""
    lines = (await response.text()).split("\n\n")
    data = [line.removeprefix("data: ") for line in lines if line]
    return [text if text == "[DONE]" else json.loads(text, parse_float=Decimal) for text in data]


async def stream(venice: Client, text: str = "[tokens=4]", **fields: Any) -> list[Any]:
    async with venice.post(CHAT, json=asking(text, stream=True, **fields)) as response:
        assert response.status == 200
        return await events_of(response)


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)
