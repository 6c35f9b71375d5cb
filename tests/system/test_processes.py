"""Several processes on one port act as one service for callers, operator and platform."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
from pathlib import Path

import aiohttp
import psutil
import pytest
from paid_bodies import BODIES
from process import database_url, started, variables
from prometheus_client.parser import text_string_to_metric_families
from support import OPERATOR_KEY, Service, set_limit

from service import __version__

OPERATOR = {"Authorization": f"Bearer {OPERATOR_KEY}"}
CHAT = "/chat/completions"


@pytest.fixture
def temporary(tmp_path):
    """The directory where the processes keep their metrics."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    return directory


@pytest.fixture
def environment(database_address, upstream, temporary):
    """The environment that two processes need."""
    return {
        "WEB_CONCURRENCY": "2",
        "TMPDIR": str(temporary),
        "DATABASE_URL": database_url(database_address),
        "VENICE_API_KEY": "sandbox",
        "VENICE_BASE_URL": f"{upstream.url}/api/v1",
        "SHUTDOWN_TIMEOUT": "20",
    }


@contextlib.asynccontextmanager
async def client_of(process):
    """Yield a client that opens a connection for each request, so that it reaches all processes."""
    port = await process.listening(60)
    await process.wait_for_line("all processes listening")
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=connector) as http:
        yield Service(None, http)


async def samples(service):
    """Return every sample of the metrics, by name and labels."""
    async with service.http.get("/metrics", headers=OPERATOR) as response:
        assert response.status == 200
        text = await response.text()
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def statuses(caller, count):
    """Make that many concurrent calls; return the statuses."""

    async def one():
        async with caller.chat() as response:
            await response.read()
            return response.status

    return await asyncio.gather(*(one() for _ in range(count)))


def answering(process, path):
    """Return the ids of the processes that have answered requests for that path."""
    return {line["process"] for line in process.lines_with("request") if line["route"] == path}


async def gone(pids):
    """Wait until none of these processes is left."""

    def is_left(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        return False

    async with asyncio.timeout(20):
        while any(is_left(pid) for pid in pids):
            await asyncio.sleep(0.05)


def children(process):
    """Return the ids of the process's children."""
    return [child.pid for child in psutil.Process(process.process.pid).children(recursive=True)]


async def test_limits_and_metrics_are_of_all(tmp_path, environment, temporary):
    """Of 60 concurrent calls as many pass as the limit allows on all processes together, and every
    process reports the same metrics."""
    async with started(tmp_path, **environment) as process, client_of(process) as service:
        caller = await service.new_caller()
        await set_limit(caller, unit="requests", period="day", ceiling=25)
        answered = await statuses(caller, 60)
        assert (answered.count(200), answered.count(429)) == (25, 35)
        counted = {
            ("rialto_calls_total", CHAT, "ok"): 25,
            ("rialto_refusals_total", "organization", "rate_limited", "requests"): 35,
            ("rialto_admission_seconds_count",): 60,
            ("rialto_batch_size_sum", "admission"): 60,
        }
        async with asyncio.timeout(10):
            # Counts of the other process are up to a second old.
            while not counted.items() <= (await samples(service)).items():
                await asyncio.sleep(0.05)
        pages = [await samples(service) for _ in range(8)]
        together = next(iter(pages))
        for one in pages:
            assert counted.items() <= one.items()
            assert sum(one["rialto_pool_connections", state] for state in ("idle", "used")) == 10
        assert [key for key in together if key[0] == "rialto_build_info"]
        resident = [psutil.Process(pid).memory_info().rss for pid in children(process)]
        assert together["process_resident_memory_bytes",] > sum(resident) > max(resident)
        assert together["process_cpu_seconds_total",] > 0
        process.send()
        assert await process.ended() == 0

    assert answering(process, f"/v1{CHAT}") == {1, 2}
    (pools,) = process.lines_with("processes")
    assert (pools["database_connections"], pools["listen_connections"]) == (10, 2)
    assert list(temporary.iterdir()) == []


async def test_open_calls_are_counted_everywhere(tmp_path, environment, upstream):
    """The sum includes the calls in flight of the other process within seconds."""
    upstream.faults.push(CHAT, "hang", times=30)
    async with (
        started(tmp_path, **environment) as process,
        client_of(process) as service,
        # One connection always reaches the same process.
        aiohttp.ClientSession(service.url) as http,
    ):
        one = Service(None, http)

        async def counted(count):
            async with asyncio.timeout(20):
                while (await samples(one))["rialto_open_calls",] != count:
                    await asyncio.sleep(0.1)

        caller = await service.new_caller()
        calls = asyncio.create_task(statuses(caller, 30))
        await upstream.faults.wait_held(30)
        await counted(30)
        upstream.faults.release()
        await calls
        await counted(0)
        process.send()
        assert await process.ended() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_streams_on_all_processes_are_finished(tmp_path, environment, number):
    """A signal to the first process drains all of them: health reports it, the port is released,
    and running streams end normally."""
    environment["SHUTDOWN_LISTEN_SECONDS"] = "1"
    async with started(tmp_path, **environment) as process, client_of(process) as service:
        caller = await service.new_caller()
        begun = asyncio.Semaphore(0)

        async def stream():
            async with caller.chat("[tokens=30][delay=0.1]", stream=True) as response:
                await response.content.readline()
                begun.release()
                return await response.read()

        streams = [asyncio.create_task(stream()) for _ in range(24)]
        for _ in streams:
            await begun.acquire()
        # Ctrl-C on a terminal reaches the first process's group, which has none of its children.
        assert os.getpgid(process.process.pid) not in map(os.getpgid, children(process))
        process.send(number)
        # Either process may be asked, and the signal reaches them at different times.
        while len(process.lines_with("draining")) < 2:
            await asyncio.sleep(0.05)
        async with service.http.get("/health") as response:
            assert response.status == 503
        while len(process.lines_with("no longer listening")) < 2:
            await asyncio.sleep(0.05)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", process.lines_with("listening")[0]["port"])
        assert all(text.endswith(b"data: [DONE]\n\n") for text in await asyncio.gather(*streams))
        assert await process.ended() == 0

    draining = {line["process"]: line["open_calls"] for line in process.lines_with("draining")}
    assert sum(draining.values()) == 24
    assert all(draining[number] > 0 for number in (1, 2))
    assert {line["process"] for line in process.lines_with("stopped")} == {1, 2}
    assert process.lines[-1]["message"] == "all processes stopped"


async def test_a_second_signal_hurries_all(tmp_path, environment, upstream):
    """A second signal is passed on like the first, and hurries all processes."""
    upstream.faults.push(CHAT, "stall", after=3)
    environment |= {"SHUTDOWN_TIMEOUT": "600", "SHUTDOWN_LISTEN_SECONDS": "60"}
    async with started(tmp_path, **environment) as process, client_of(process) as service:
        caller = await service.new_caller()
        async with caller.chat("[tokens=9]", stream=True) as stream:
            await stream.content.readline()
            process.send()
            while len(process.lines_with("draining")) < 2:
                await asyncio.sleep(0.05)
            process.send()
            assert (await stream.read()).endswith(b"data: [DONE]\n\n")
        assert await process.ended(timeout=15) == 0


async def test_a_child_that_is_killed_ends_the_service(tmp_path, environment):
    """When a child is killed the other one drains, the log names it, and the platform restarts the
    service."""
    async with started(tmp_path, **environment) as process, client_of(process):
        pids = children(process)
        os.kill(pids[1], signal.SIGKILL)
        assert await process.ended() == 1

    (ended,) = process.lines_with("process ended")
    assert (ended["level"], ended["pid"], ended["status"]) == ("critical", pids[1], -9)
    assert [line["process"] for line in process.lines_with("drained")] == [3 - ended["process"]]
    await gone(pids)


async def test_a_child_that_stops_by_itself_ends_the_service(tmp_path, environment):
    """A child that ends by itself, even with status 0, ends the service, because nobody asked it to
    stop."""
    async with started(tmp_path, **environment) as process, client_of(process):
        os.kill(children(process)[0], signal.SIGTERM)
        assert await process.ended() == 1

    (ended,) = process.lines_with("process ended")
    assert (ended["level"], ended["status"]) == ("critical", 0)
    assert len(process.lines_with("drained")) == 2


async def test_no_child_outlives_its_parent(tmp_path, environment, upstream):
    """When the parent is killed its children drain and end."""
    async with started(tmp_path, **environment) as process, client_of(process) as service:
        caller = await service.new_caller()
        pids = children(process)
        assert len(pids) == 2
        async with caller.chat("[tokens=20][delay=0.1]", stream=True) as stream:
            await stream.content.readline()
            process.send(signal.SIGKILL)
            assert (await stream.read()).endswith(b"data: [DONE]\n\n")
        await gone(pids)

    lines = process.lines_with("parent process exited")
    assert {line["process"] for line in lines} == {1, 2}
    assert len(process.lines_with("drained")) == 2


async def test_the_parent_is_small(tmp_path, environment):
    """The parent does not load modules that only serving needs."""
    async with started(tmp_path, **environment) as process, client_of(process):
        parent, child = (
            {Path(one.path).name.partition(".")[0] for one in psutil.Process(pid).memory_maps()}
            for pid in (process.process.pid, children(process)[0])
        )
        process.send()
        assert await process.ended() == 0

    libraries = {"_http_parser", "protocol", "loop"}
    assert child >= libraries
    assert not parent & libraries


async def test_one_process_is_one_process(tmp_path, environment, temporary):
    """With WEB_CONCURRENCY=1 there is no parent, no child and no directory for metrics."""
    environment["WEB_CONCURRENCY"] = "1"
    async with started(tmp_path, **environment) as process:
        await process.listening()
        assert children(process) == []
        assert list(temporary.iterdir()) == []
        process.send()
        assert await process.ended() == 0

    assert not [line for line in process.lines if "process" in line]
    assert process.lines_with("processes") == []


async def test_a_failed_start_is_reported_once(tmp_path, unused_tcp_port):
    """An error that keeps all processes from starting is the last line, and occurs once."""
    async with started(
        tmp_path,
        WEB_CONCURRENCY="3",
        DATABASE_URL=f"postgresql://u@127.0.0.1:{unused_tcp_port}/x",
        STARTUP_DATABASE_TIMEOUT="1",
    ) as process:
        assert await process.ended() == 1

    (failed,) = process.lines_with("start failed")
    assert failed is process.lines[-1]
    assert len(process.lines_with("process started")) == 1


async def test_a_taken_port_is_reported_once(tmp_path, environment):
    """A taken port is reported before any child starts, also when another service with several
    processes has it."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with started(tmp_path, **environment, PORT=str(port)) as process:
            assert await process.ended() == 1

    (failed,) = process.lines_with("start failed")
    assert failed["error"] == f"Cannot listen on 127.0.0.1:{port}: Address already in use."
    assert process.lines_with("process started") == []


async def test_a_start_can_be_stopped(tmp_path, unused_tcp_port):
    """SIGTERM while the first child waits for the database ends all processes at once with status
    0."""
    async with started(
        tmp_path,
        WEB_CONCURRENCY="2",
        DATABASE_URL=f"postgresql://u@127.0.0.1:{unused_tcp_port}/x",
        STARTUP_DATABASE_TIMEOUT="600",
    ) as process:
        await process.wait_for_line("database not there yet")
        process.send()
        assert await process.ended(timeout=5) == 0

    assert len(process.lines_with("process started")) == 1


async def test_development_has_one_of_each(tmp_path):
    """In development the processes share one PostgreSQL, one welcome and one sandbox, so a job
    queued through one is found through each; Ctrl-C stops everything."""
    async with started(tmp_path, WEB_CONCURRENCY="2", LOG_LEVEL="debug") as process:
        async with client_of(process) as service:
            await process.wait_for_line("catalogue refreshed")
            caller = await service.new_caller()
            path = "/v1/video/queue"
            async with service.http.post(
                path, json=BODIES["/video/queue"], headers=caller.headers
            ) as response:
                made = await response.json()
                assert response.status == 200, made
            ticket = {"model": made["model"], "queue_id": made["queue_id"]}

            async def ask():
                async with service.http.post(
                    "/v1/video/retrieve", json=ticket, headers=caller.headers
                ) as response:
                    return response.status

            assert set(await asyncio.gather(*(ask() for _ in range(24)))) == {200}
        process.send(signal.SIGINT)
        assert await process.ended() == 0

    assert answering(process, "/v1/video/retrieve") == {1, 2}
    assert len(re.findall("Rialto listens on", "".join(process.raw))) == 1
    assert len(process.lines_with("sandbox plays Venice: answers are simulated")) == 1
    assert "simulated" in "".join(line for line in process.raw if line[0] != "{")
    assert not (tmp_path / ".rialto" / "postgres" / "postmaster.pid").exists()


async def test_unreadable_metric_files_are_skipped(tmp_path, environment, temporary):
    """Metric files that are empty, truncated or foreign are skipped, and the other metrics are
    shown."""
    async with started(tmp_path, **environment) as process, client_of(process) as service:
        (directory,) = temporary.glob("rialto-metrics-*")
        whole = next(directory.glob("counter_*.db")).read_bytes()
        for number, content in enumerate(
            (b"", b"\0", whole[:4], whole[:100], b"\xff" * 4096, whole[:8] + b"x" * 5000)
        ):
            for kind in ("counter", "histogram", "gauge_sum"):
                (directory / f"{kind}_99999{number}.db").write_bytes(content)
        (directory / "other.db").write_bytes(b"x")

        found = await samples(service)

        assert found["rialto_build_info", __version__] == 1
        process.send()
        assert await process.ended() == 0


@pytest.mark.parametrize("is_emptied", [False, True])
async def test_deleted_metric_files(tmp_path, environment, temporary, is_emptied):
    """After a cleaner deleted the metric files the response names the directory and what to do, and
    everything else continues."""
    async with started(tmp_path, **environment) as process, client_of(process) as service:
        (directory,) = temporary.glob("rialto-metrics-*")
        for file in directory.iterdir():
            file.unlink()
        if not is_emptied:
            directory.rmdir()
        async with service.http.get("/metrics", headers=OPERATOR) as response:
            error = (await response.json())["error"]
        assert (response.status, error["code"]) == (503, "unavailable")
        assert str(directory) in error["message"]
        assert "TMPDIR" in error["message"]
        caller = await service.new_caller()
        async with caller.chat() as response:
            assert response.status == 200
        process.send()
        assert await process.ended() == 0


async def test_a_full_disk_for_metrics_ends_the_start(tmp_path, environment):
    """Without room for metrics the start fails with a message before it listens, because a later
    write would crash the process."""
    limited = f"ulimit -f 2048; exec {sys.executable} -m service"
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", limited),
        cwd=tmp_path,
        env=variables(tmp_path, **environment),
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await process.communicate()

    assert process.returncode == 1
    assert b"Cannot create the metrics directory" in err
    assert b"TMPDIR" in err
    assert b'"listening"' not in err
