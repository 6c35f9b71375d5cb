"""Callers that hang up: their calls cost never less than Venice charges, and exactly that with
``on_disconnect: finish``."""

import asyncio
import contextlib
import random
from decimal import Decimal

import pytest
from odd_venice import head, odd_venice, serving
from paid_bodies import BODIES, UNPRICED, payload
from support import cost_of, set_limit

from service.api import GATEWAY, VENICE
from service.gateway import CHAT, pipeline
from service.gateway.relays import events
from service.shares import Share, Shares

pytestmark = pytest.mark.shares_service

JSON = "application/json"


@pytest.fixture
async def caller(service):
    """A caller whose key has ``on_disconnect`` set to ``finish``."""
    caller = await service.new_caller(settings={"on_disconnect": "finish"})
    await set_limit(caller, unit="usd", period="day", ceiling="100")
    await set_limit(caller, unit="concurrency", ceiling=10)
    return caller


async def settled(caller):
    """Wait for the single entry and return it."""
    async with asyncio.timeout(10):
        while not (entries := await caller.entries()):
            await asyncio.sleep(0.02)
    (entry,) = entries
    return entry


def charged(upstream):
    """Wait until Venice has finished the one call; return its charge in US dollars."""
    (call,) = upstream.calls.to("/chat/completions")
    assert call.cut_at is None
    return call.charged_nanos / 10**9


@pytest.mark.parametrize("maximum", [100, 20_000])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_finished_call_has_venices_cost(upstream, caller, stream, maximum):
    """A plain, streamed or assembled call that is finished without its caller has the cost that
    Venice reports."""
    content = "[tokens=30][delay=0.02]"
    waiting = asyncio.create_task(
        caller.chat(content, stream=stream, max_tokens=maximum).__aenter__()
    )
    async with asyncio.timeout(5):
        while not upstream.calls.to("/chat/completions"):
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    if waiting.done():
        waiting.result().close()
    waiting.cancel()

    entry = await settled(caller)

    assert (entry["outcome"], entry["cost_source"]) == ("client_closed", "reported")
    assert entry["output_tokens"] == 30
    assert float(cost_of(entry)) == charged(upstream)


async def test_a_stream_left_in_the_middle_is_finished(upstream, caller):
    """A stream that its caller left is read to its end, and limits count its hold until then."""
    async with caller.chat("[tokens=60][delay=0.02]", stream=True) as response:
        for _ in range(6):
            await response.content.readline()
        response.close()
    await asyncio.sleep(0.1)
    gateway = caller.service.app[GATEWAY]
    assert gateway.open_calls == 1

    entry = await settled(caller)
    assert (entry["cost_source"], entry["output_tokens"]) == ("reported", 60)
    assert float(cost_of(entry)) == charged(upstream)
    assert gateway.open_calls == 0


async def test_a_finished_call_that_venice_cuts_is_estimated(upstream, caller):
    """A call that Venice cuts after its caller left is recorded at an estimate."""
    upstream.faults.push("/chat/completions", "cut", after=20)
    async with caller.chat("[tokens=60][delay=0.02]", stream=True) as response:
        await response.content.readline()
        response.close()

    entry = await settled(caller)
    assert (entry["outcome"], entry["cost_source"]) == ("client_closed", "estimated")
    assert 10 < entry["output_tokens"] <= 20


async def test_a_shutdown_ends_a_finishing_call(upstream, caller):
    """A shutdown ends the reading of a left response and writes its entry."""
    upstream.faults.push("/chat/completions", "stall", after=5)
    async with caller.chat("[tokens=60]", stream=True) as response:
        await response.content.readline()
        await upstream.faults.wait_held(1)
        response.close()
    gateway = caller.service.app[GATEWAY]
    await asyncio.sleep(0.1)
    assert gateway.open_calls == 1

    await gateway.close()

    entry = await settled(caller)
    assert (entry["outcome"], entry["cost_source"]) == ("client_closed", "estimated")
    assert gateway.open_calls == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_a_refusal_after_the_caller_left_costs_nothing(upstream, caller, stream):
    """A call that Venice refuses after its caller left is recorded as not charged."""
    upstream.faults.push("/chat/completions", "slow_headers", seconds=0.5)
    body = "word " * 200_000
    waiting = asyncio.create_task(caller.chat(body, stream=stream).__aenter__())
    async with asyncio.timeout(5):
        while not upstream.calls.to("/chat/completions"):
            await asyncio.sleep(0.01)
    waiting.cancel()

    entry = await settled(caller)
    assert (entry["outcome"], entry["cost_source"]) == ("client_closed", "not_charged")


async def test_the_number_of_finishing_calls_is_bounded(upstream, caller, monkeypatch):
    """A call beyond the number that a key may have finishing is ended and recorded at its bound."""
    monkeypatch.setattr(pipeline, "MAX_FINISHING_OF_KEY", 1)
    upstream.faults.push("/chat/completions", "stall", after=5)
    for held in (1, 2):
        async with caller.chat("[tokens=60]", stream=True, max_tokens=100) as response:
            await response.content.readline()
            await upstream.faults.wait_held(held)
            response.close()
        await asyncio.sleep(0.1)

    entry = await settled(caller)
    assert (entry["outcome"], entry["cost_source"]) == ("client_closed", "estimated")
    assert entry["cost_usd"] == entry["bound_usd"]
    upstream.faults.release()
    async with asyncio.timeout(5):
        while len(entries := await caller.entries()) < 2:
            await asyncio.sleep(0.02)
    assert {entry["cost_source"] for entry in entries} == {"estimated", "reported"}


async def test_the_number_holds_when_many_callers_leave_together(upstream, caller, monkeypatch):
    """The bound on finishing calls holds when many callers leave in one turn of the event loop."""
    monkeypatch.setattr(pipeline, "MAX_FINISHING_OF_KEY", 2)
    upstream.faults.push("/chat/completions", "stall", after=5, times=5)
    gateway = caller.service.app[GATEWAY]
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(5):
            call = caller.chat("[tokens=60]", stream=True, max_tokens=100)
            response = await stack.enter_async_context(call)
            await response.content.readline()
        await upstream.faults.wait_held(5)
        for begun in list(gateway._open_calls):
            begun.task.cancel()
        async with asyncio.timeout(5):
            while len(await caller.entries()) < 3:
                await asyncio.sleep(0.02)

        assert gateway.open_calls == 2
        upstream.faults.release()
    async with asyncio.timeout(5):
        while len(entries := await caller.entries()) < 5:
            await asyncio.sleep(0.02)
    sources = sorted(entry["cost_source"] for entry in entries)
    assert sources == ["estimated"] * 3 + ["reported"] * 2
    assert not gateway._finishing_of


async def test_bodies_of_finishing_calls_have_a_budget(upstream, caller, monkeypatch):
    """A left call whose body does not fit into the budget is recorded at its bound."""
    gateway = caller.service.app[GATEWAY]
    monkeypatch.setattr(gateway, "_finishing_bytes", Shares(6_000))
    upstream.faults.push("/chat/completions", "stall", after=5, times=3)
    for held, letters in enumerate((10, 10, 3_000), start=1):
        prompt = "[tokens=60]" + "x" * letters
        async with caller.chat(prompt, stream=True, max_tokens=100) as response:
            await response.content.readline()
            await upstream.faults.wait_held(held)
            response.close()
        await asyncio.sleep(0.1)

    entry = await settled(caller)
    assert (entry["cost_usd"], gateway.open_calls) == (entry["bound_usd"], 2)
    upstream.faults.release()
    async with asyncio.timeout(5):
        while len(await caller.entries()) < 3:
            await asyncio.sleep(0.02)
    assert Share(gateway._finishing_bytes, caller.organization_id, caller.key_id).grow(2_000)


async def test_a_cost_that_cannot_be_computed_keeps_no_call_open(upstream, caller, monkeypatch):
    """A failure to compute a cost leaves the hold to the sweeper, and keeps neither the call nor
    its connection."""

    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(type(CHAT), "cost", broken)
    async with caller.chat() as response:
        assert response.status == 500

    gateway = caller.service.app[GATEWAY]
    assert gateway.open_calls == 0
    assert not any(caller.service.app[VENICE].keys.in_flight.values())


@pytest.mark.parametrize("on_disconnect", ["cancel", "finish"])
@pytest.mark.parametrize(("path", "body"), [case for case in BODIES.items() if "{" not in case[0]])
async def test_leaving_makes_no_call_cheaper(upstream, service, path, body, on_disconnect):
    """A caller that leaves, on any endpoint and at any time, pays at least what Venice charges."""
    caller = await service.new_caller(settings={"on_disconnect": on_disconnect})
    choice = random.Random(path)
    for seconds in (0.0, 0.0002, 0.001):
        upstream.faults.push("*", "slow_bytes", seconds=seconds, times=1)
        fields = dict(body)
        if path in ("/chat/completions", "/responses", "/messages"):
            fields["stream"] = True
        with contextlib.suppress(TimeoutError, asyncio.IncompleteReadError):
            async with (
                asyncio.timeout(choice.uniform(0.02, 0.2)),
                service.http.post(
                    f"/v1{path}", headers=caller.headers, **payload(fields)
                ) as response,
            ):
                await response.content.readexactly(choice.randrange(1, 40))
                response.close()
    async with asyncio.timeout(60):
        while service.app[GATEWAY].open_calls:
            await asyncio.sleep(0.02)

    entries = await caller.entries()
    if path in UNPRICED:
        assert {entry["cost_source"] for entry in entries} <= {"unknown", "not_charged"}
    else:
        booked = sum(cost_of(entry) for entry in entries)
        assert booked >= Decimal(upstream.calls.charged_nanos) / 10**9


@pytest.fixture
async def greedy(database_address):
    """A Venice that counts each letter as a token and charges the whole allowed output at once, and
    a service before it."""
    async with odd_venice() as venice:

        async def answer(request, writer):
            asked = request.json()
            most = asked.get("max_tokens") or asked["max_completion_tokens"]
            most *= asked.get("n", 1)
            letters = len(asked["messages"][0]["content"])
            venice.charged_nanos += 1000 * letters + 2000 * most
            writer.write(head("200 OK", "text/event-stream" if asked.get("stream") else JSON))
            for _ in range(200):
                writer.write(b'data: {"choices":[{"index":0,"delta":{"content":"123"}}],')
                writer.write(b'"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n')
                await writer.drain()
                await asyncio.sleep(0.002)

        venice.charged_nanos, venice.answer = 0, answer
        async with serving(database_address, venice) as service:
            yield venice, service


@pytest.mark.parametrize("more", [{"max_tokens": 60}, {"n": 3}, {"max_tokens": 20_000}])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_limit_holds_when_callers_leave(greedy, stream, more):
    """Venice's total charge stays below the ceiling, however many callers begin a call and
    leave."""
    venice, service = greedy
    caller = await service.new_caller()
    await set_limit(caller, unit="usd", period="day", ceiling="0.3")
    choice = random.Random(1)
    for _ in range(30):
        with contextlib.suppress(TimeoutError, asyncio.IncompleteReadError):
            async with (
                asyncio.timeout(choice.uniform(0.01, 0.1)),
                caller.chat("7" * 3000, model="m", stream=stream, **more) as response,
            ):
                if response.status in (402, 429):
                    break
                await response.content.readexactly(choice.randrange(1, 3000))
                response.close()
    async with asyncio.timeout(5):
        while service.app[GATEWAY].open_calls:
            await asyncio.sleep(0.02)

    booked = sum(cost_of(entry) for entry in await caller.entries())
    assert Decimal("0.3") >= booked >= Decimal(venice.charged_nanos) / 10**9 > 0


async def test_leaving_costs_what_the_dearest_fallback_does(greedy):
    """A call that its caller left costs what the dearest fallback would, with its longest
    reasoning."""
    _, service = greedy
    caller = await service.new_caller()
    more = {"max_tokens": 100, "fallbacks": [{"model": "dear"}]}
    async with caller.chat(model="m", stream=True, **more) as response:
        assert response.status == 200
        await response.content.readline()
        response.close()
    async with asyncio.timeout(5):
        while service.app[GATEWAY].open_calls:
            await asyncio.sleep(0.02)

    (entry,) = await caller.entries()
    assert entry["cost_usd"] == entry["bound_usd"]
    assert cost_of(entry) > Decimal(100 * 20_000) / 10**9


async def test_a_stream_that_its_caller_stalled_saves_nothing(database_address, monkeypatch):
    """A stream that broke while its caller read nothing is recorded at its bound, because Venice
    may have produced the rest."""
    monkeypatch.setattr(events, "MAX_HELD_UP_S", 0.1)
    event = b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % (b"x" * 20_000)
    async with odd_venice() as venice, serving(database_address, venice) as service:

        async def answer(request, writer):
            writer.write(head("200 OK", "text/event-stream"))
            for venice.written in range(1000):
                writer.write(event)
                await writer.drain()

        venice.answer = answer
        caller = await service.new_caller()
        async with caller.chat(model="m", stream=True, max_tokens=20_000) as response:
            await response.content.readline()
            written = -1
            while written != venice.written:
                written = venice.written
                await asyncio.sleep(0.5)
            assert written < 999
            body = await response.read()

        assert b"upstream_cut" in body
        entry = await caller.only_entry()
    assert (entry["outcome"], entry["cost_source"]) == ("upstream_cut", "estimated")
    assert entry["cost_usd"] == entry["bound_usd"]
