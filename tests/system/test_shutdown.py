"""A shutdown loses no call in flight and settles everything."""

import asyncio
import json
import signal

import aiohttp
import pytest
from process import client_of, database_url, started
from support import MODEL


@pytest.fixture
def environment(database_address, upstream):
    """The environment that a process needs, with production's grace period."""
    return {
        "DATABASE_URL": database_url(database_address),
        "VENICE_API_KEY": "sandbox",
        "VENICE_BASE_URL": f"{upstream.url}/api/v1",
        "SHUTDOWN_LISTEN_SECONDS": "1",
        "SHUTDOWN_TIMEOUT": "10",
    }


async def entries(database_address):
    """Return outcome and status of each entry, oldest first, and the number of holds."""
    import asyncpg  # noqa: PLC0415

    from service.database.connections import connect_arguments  # noqa: PLC0415

    connection = await asyncpg.connect(**connect_arguments(database_address))
    try:
        rows = await connection.fetch("SELECT * FROM public.ledger_entries ORDER BY id")
        held = await connection.fetchval("SELECT count(*) FROM public.holds")
        return rows, held
    finally:
        await connection.close()


async def events_of(response):
    """Return the data of each event."""
    text = (await response.read()).decode()
    return [block.removeprefix("data: ") for block in text.split("\n\n") if block[:5] == "data:"]


async def test_a_stream_is_finished(tmp_path, environment, database_address):
    """A stream that is running at SIGTERM is finished, then the process exits with 0."""
    async with started(tmp_path, **environment) as process, client_of(process) as service:
        caller = await service.new_caller()
        async with caller.chat("[tokens=20][delay=0.1]", stream=True) as response:
            await response.content.readline()
            process.send()
            events = await events_of(response)
        assert await process.ended() == 0

    assert events[-1] == "[DONE]"
    (entry,), held = await entries(database_address)
    assert (entry["outcome"], entry["cost_source"], held) == ("ok", "reported", 0)
    messages = [line["message"] for line in process.lines]
    steps = ["signal received", "draining", "no longer listening", "drained", "ledger flushed"]
    places = [messages.index(step) for step in [*steps, "closing pool", "stopped"]]
    assert places == sorted(places)


async def test_new_requests_are_served_for_a_moment(tmp_path, environment):
    """After SIGTERM health reports draining, and requests that are on their way are still
    served."""
    async with started(tmp_path, **environment) as process, client_of(process) as service:
        caller = await service.new_caller()
        process.send()
        await process.wait_for_line("draining")

        async with service.http.get("/health") as response:
            assert response.status == 503
            assert (await response.text()).startswith('{"status":"draining","environment":')
        async with caller.chat() as response:
            assert response.status == 200
            assert response.headers["Connection"] == "close"
        await process.wait_for_line("no longer listening")
        with pytest.raises(aiohttp.ClientConnectorError):
            await service.http.get("/health")
        assert await process.ended() == 0


async def test_an_upload_is_finished(tmp_path, environment, database_address):
    """A request whose second half arrives after SIGTERM, and after the listener has closed, is
    served."""
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "x" * 5000}]})
    halves = body[:2000].encode(), body[2000:].encode()
    async with started(tmp_path, **environment) as process, client_of(process) as service:
        caller = await service.new_caller()

        async def upload():
            yield halves[0]
            process.send()
            await process.wait_for_line("no longer listening")
            yield halves[1]

        async with service.http.post(
            "/v1/chat/completions", data=upload(), headers=caller.headers
        ) as response:
            assert response.status == 200
        assert await process.ended() == 0

    (entry,), held = await entries(database_address)
    assert (entry["outcome"], held) == ("ok", 0)


async def test_calls_past_the_deadline_are_ended(tmp_path, environment, database_address, upstream):
    """Past the deadline a stream gets a last error event and a waiting call a 503, and both are
    recorded."""
    upstream.faults.push("/chat/completions", "stall", after=3, times=1)
    upstream.faults.push("/chat/completions", "hang", times=1)
    environment |= {"SHUTDOWN_TIMEOUT": "0.5", "SHUTDOWN_LISTEN_SECONDS": "0"}
    async with started(tmp_path, **environment) as process, client_of(process) as service:
        caller = await service.new_caller()
        async with caller.chat("[tokens=9]", stream=True) as stream:
            await stream.content.readline()
            plain = asyncio.create_task(caller.chat().__aenter__())
            await upstream.faults.wait_held(2)
            process.send()
            events = await events_of(stream)
            answer = await plain
            assert answer.status == 503
            assert (await answer.json())["error"]["code"] == "unavailable"
        assert await process.ended() == 0

    assert json.loads(events[-2])["error"]["code"] == "unavailable"
    assert events[-1] == "[DONE]"
    rows, held = await entries(database_address)
    assert [row["outcome"] for row in rows] == ["shutdown", "shutdown"]
    # What arrived of the stream was counted; nothing arrived of the plain response.
    assert [row["cost_source"] for row in rows] == ["estimated", "bound"]
    assert (rows[0]["output_tokens"], held) == (3, 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_hurries(tmp_path, environment, database_address, upstream, number):
    """A second signal skips the waiting, but not the ledger."""
    upstream.faults.push("/chat/completions", "stall", after=3, times=1)
    environment |= {"SHUTDOWN_TIMEOUT": "600", "SHUTDOWN_LISTEN_SECONDS": "60"}
    async with started(tmp_path, **environment) as process, client_of(process) as service:
        caller = await service.new_caller()
        async with caller.chat("[tokens=9]", stream=True) as stream:
            await stream.content.readline()
            process.send(number)
            await process.wait_for_line("draining")
            process.send(number)
            events = await events_of(stream)
        assert await process.ended(timeout=10) == 0

    assert events[-1] == "[DONE]"
    (entry,), held = await entries(database_address)
    assert (entry["outcome"], held) == ("shutdown", 0)
