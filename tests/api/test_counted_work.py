"""What a call makes the service do, counted and not timed: so that it does not get slower unseen.

Each number has little room above what was counted when it was written. Who needs more for a good
reason raises it, and states the reason in the commit.
"""

import asyncio
import collections
import gc
import statistics
import sys
from pathlib import Path

import pytest
from aiohttp import web
from support import make_settings, running, set_limit

import service as package
from service import api, ledger
from service import app as application
from service.accounts import Callers
from service.api.connections import CallerProtocol
from service.database.database import Database, StickyConnection
from service.gateway.open_call import OpenCall
from service.upstream.http.connection import Connection

CALLS = 20
SERVICE = str(Path(package.__file__).parent)
SANDBOX = str(Path(package.__file__).parent / "sandbox")
DECODES = {"json_decode", "decode"}
AFTER_AWAIT = 3
"""The argument of the instruction RESUME where a coroutine goes on; it is 0 where one begins."""


def is_ours(code):
    """Whether it is the service's own, and not the sandbox's, which runs here too."""
    return code.co_filename.startswith(SERVICE) and not code.co_filename.startswith(SANDBOX)


class Work:
    """Counts, while it is entered: statements, tasks and decoded JSON of the service, how often one
    of its functions is entered, which for a coroutine is each time that it goes on, how often that
    is after an await, and in how many modules."""

    def __init__(self, monkeypatch):
        self.counts = collections.Counter()
        self.modules = set()
        self._count(monkeypatch, Database, "_repeated")
        self._count(monkeypatch, StickyConnection, "fetch")

    def _count(self, monkeypatch, kind, name):
        run = getattr(kind, name)

        async def counted(database, *arguments):
            self.counts["statements"] += 1
            return await run(database, *arguments)

        monkeypatch.setattr(kind, name, counted)

    def _saw(self, frame, event, what):
        if not is_ours(frame.f_code):
            return
        if event == "call":
            self.counts["functions"] += 1
            resumed = frame.f_code.co_code[frame.f_lasti + 1]
            self.counts["awaits"] += resumed & AFTER_AWAIT == AFTER_AWAIT
            self.modules.add(frame.f_code.co_filename)
        elif event == "c_call" and what.__name__ in DECODES and "msgspec" in repr(what):
            self.counts["decodes"] += 1

    def _make_task(self, loop, coroutine, **arguments):
        self.counts["tasks"] += is_ours(coroutine.cr_code)
        return asyncio.Task(coroutine, loop=loop, **arguments)

    def __enter__(self):
        self.counts.clear()
        asyncio.get_running_loop().set_task_factory(self._make_task)
        sys.setprofile(self._saw)

    def __exit__(self, *_):
        sys.setprofile(None)
        asyncio.get_running_loop().set_task_factory(None)


@pytest.fixture
async def service(database_address, upstream, monkeypatch):
    """A service in which nothing else works that would be counted with the calls, however long they
    take: no jobs, no second look at a key, no new task of the books after a pause."""

    async def no_jobs(_):
        yield

    monkeypatch.setattr(application, "background", no_jobs)
    monkeypatch.setattr(ledger.batches, "LINGER_S", 60)
    settings = make_settings(database_address, upstream.url, key_cache_s=300.0)
    async with running(settings) as service:
        yield service
        await service.audit()


@pytest.fixture
def work(monkeypatch):
    return Work(monkeypatch)


async def counted(work, caller, content, **members):
    """What one of many calls takes, when the key is known already. Functions, awaits and modules
    are counted for each call, and their median is taken: on a busy machine an answer comes in more
    pieces."""

    async def called():
        async with caller.chat(content, **members) as response:
            await response.read()
            assert response.status == 200

    await called()
    of_calls = collections.defaultdict(list)
    with work:
        for _ in range(CALLS):
            before = work.counts.copy()
            work.modules.clear()
            await called()
            for name in ("functions", "awaits"):
                of_calls[name].append(work.counts[name] - before[name])
            of_calls["modules"].append(len(work.modules))
    done = {name: count / CALLS for name, count in work.counts.items()}
    return done | {name: statistics.median(counts) for name, counts in of_calls.items()}


async def test_a_plain_call(caller, work):
    """Two statements: its admission and its settlement, which share theirs with other calls' where
    there are any, in one task for many calls. Nothing else waits for the database, and no task is
    made for the call itself."""
    done = await counted(work, caller, "[tokens=20] Hello")

    assert done["statements"] == 2
    assert done["tasks"] <= 0.1
    # The request, the answer, and of that its parts.
    assert done["decodes"] <= 3
    assert done["functions"] <= 176
    assert done["awaits"] <= 25
    assert done["modules"] <= 51


async def test_a_stream(caller, work):
    """Beside those of the ledger: a task that may go on without its caller."""
    done = await counted(work, caller, "[tokens=20] Hello", stream=True)

    assert done["statements"] == 2
    assert 1 <= done["tasks"] <= 1.1
    assert done["decodes"] <= 3
    assert done["functions"] <= 232
    assert done["awaits"] <= 29
    assert done["modules"] <= 54


async def test_a_chunk_of_a_stream(caller, work):
    """No JSON is decoded for a chunk, no task made and no timer set: its bytes are counted, looked
    through for an error and passed on."""
    few = await counted(work, caller, "[tokens=20][delay=0.001] Hello", stream=True)
    many = await counted(work, caller, "[tokens=120][delay=0.001] Hello", stream=True)

    # Now and then something goes on in the background too, and the task of the books ends while
    # nothing is to be done for it.
    for name in ("decodes", "tasks", "statements"):
        assert round((many[name] - few[name]) / 100, 1) == 0, name
    assert (many["functions"] - few["functions"]) / 100 <= 15


async def test_what_arrives_is_parsed_once(caller, monkeypatch):
    """However many chunks come together: reading them does not run the parser again."""
    received, parsed, receive = [], [], Connection.data_received

    class NotedParser:
        def __init__(self, parser):
            self.parser = parser

        def feed_data(self, data):
            parsed.append(data)
            self.parser.feed_data(data)

    def noted(connection, data):
        if not isinstance(connection._parser, NotedParser):
            connection._parser = NotedParser(connection._parser)
        received.append(data)
        receive(connection, data)

    monkeypatch.setattr(Connection, "data_received", noted)
    async with caller.chat("[tokens=120] Hello", stream=True) as response:
        await response.read()

    assert b"".join(received).count(b"data:") > 120
    assert parsed == received
    assert b"" not in parsed


async def test_what_a_caller_sends_is_parsed_once(caller, monkeypatch):
    """Reading the body of a request does not run the parser again."""
    received, receive = [], web.RequestHandler.data_received

    def noted(protocol, data):
        if isinstance(protocol, CallerProtocol):
            received.append(data)
        receive(protocol, data)

    monkeypatch.setattr(web.RequestHandler, "data_received", noted)
    async with caller.chat("[tokens=5] Hello") as response:
        assert response.status == 200

    assert b"[tokens=5]" in b"".join(received)
    assert b"" not in received


@pytest.fixture
def reads(monkeypatch):
    """The digests of the keys that are read, each when it is; none goes on before ``may_end``."""
    begun, read = [], Callers._read
    begun_may_end = asyncio.Event()

    async def noted(callers, digest):
        begun.append(digest)
        await begun_may_end.wait()
        return await read(callers, digest)

    monkeypatch.setattr(Callers, "_read", noted)
    return begun, begun_may_end


async def test_a_key_is_read_once_for_all_who_call_at_once(service, caller, reads):
    """However many there are; but for those who call after a change was announced it is read
    again."""
    begun, may_end = reads
    callers = service.app[api.CALLERS]
    before = [asyncio.create_task(callers.identify(caller.key)) for _ in range(CALLS)]
    await asyncio.sleep(0.01)
    assert len(begun) == 1
    callers.forget()
    after = [asyncio.create_task(callers.identify(caller.key)) for _ in range(CALLS)]
    await asyncio.sleep(0.01)
    assert len(begun) == 2

    before[0].cancel()
    may_end.set()

    found = await asyncio.gather(*before[1:], *after)
    assert {str(one.api_key_id) for one in found} == {caller.key_id}
    assert len(begun) == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_has_ended_is_gone(caller, stream):
    """It leaves no cycle for Python to look for, which is seldom done; a stream's end would stay
    until then."""
    gc.collect()
    before = open_calls()
    gc.disable()
    try:
        for _ in range(3):
            async with caller.chat(stream=stream) as response:
                await response.read()
        await asyncio.sleep(0.1)
        left = open_calls() - before
    finally:
        gc.enable()
    assert left == set()


async def test_a_call_that_was_refused_is_gone(caller):
    """Once Python has looked for cycles, as there are in tracebacks; the books keep nothing of
    it."""
    await set_limit(caller, unit="requests", period="minute", ceiling=0)
    gc.collect()
    before = open_calls()
    async with caller.chat() as response:
        assert response.status == 400

    gc.collect()
    assert open_calls() - before == set()


def open_calls():
    """Those that are in memory."""
    return {it for it in gc.get_objects() if isinstance(it, OpenCall)}
