"""The programs that take part: made, started on a core, waited for, counted and stopped."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = Path(__file__).resolve().parent
CACHE = ROOT / ".bench"
"""What is installed and compiled; kept from run to run."""
KEPT = ("PATH", "HOME")
POLL_S = 0.005
STOP_S = 30
INSTALL_S = 900
SETTLE_S = 0.3
"""Work that an answer leaves behind is over by then, and counted."""


class BenchError(Exception):
    """The bench cannot go on; the message says why."""


def cores():
    """The core of the load, the upstream and PostgreSQL, and the gateway's own. The same one twice
    where there is only one."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[-1]


def compiled(name):
    """The program made of ``name.c``, made anew when that has changed.

    :raises BenchError: when gcc does not make it.
    """
    source, program = SOURCES / f"{name}.c", CACHE / "bin" / name
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        program.parent.mkdir(parents=True, exist_ok=True)
        # Others may compile it or run it meanwhile: what they see is always a whole program.
        with tempfile.TemporaryDirectory(dir=program.parent) as directory:
            made = Path(directory) / name
            ran = subprocess.run(
                ["gcc", "-O2", "-Wall", "-Wextra", "-o", made, source],
                check=False,
                capture_output=True,
                text=True,
            )
            if ran.returncode:
                raise BenchError(f"gcc does not make {name}: {ran.stderr}")
            made.replace(program)
    return program


def run_step(*arguments, cwd=None, **environment):
    """A step of an installation: what it says, on either output.

    :raises BenchError: when it fails, with its last words.
    """
    try:
        ran = subprocess.run(
            list(map(str, arguments)),
            check=False,
            cwd=cwd,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=INSTALL_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchError(str(error)) from error
    if ran.returncode:
        said = " ".join(ran.stdout.split())[-300:]
        raise BenchError(f"{Path(arguments[0]).name} {arguments[1]} failed: {said}")
    return ran.stdout


def free_port():
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def ask(port, path, *, headers=None, body=None, timeout=10):
    """A request to 127.0.0.1: its status and its body's bytes; status 0 while nobody answers."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json", **(headers or {})},
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError as error:
        return 0, str(error).encode()


class Program:
    """A process on one core, with its output in a file."""

    def __init__(self, arguments, *, core, log_path, environment=None, cwd=ROOT):
        self.log_path = log_path
        self.started = time.perf_counter()
        with log_path.open("ab") as log:
            self._running = subprocess.Popen(
                ["taskset", "-c", str(core), *map(str, arguments)],
                cwd=cwd,
                # Nothing of the developer's settings.
                env={**{name: os.environ.get(name, "") for name in KEPT}, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.pid = self._running.pid

    def wait_for(self, is_ready, timeout):
        """Seconds from the start until ``is_ready()``.

        :raises BenchError: when it ends or takes too long, with its last words.
        """
        while not is_ready():
            if self._running.poll() is not None:
                raise BenchError(f"it ended: {self.last_words()}")
            if time.perf_counter() - self.started > timeout:
                raise BenchError(f"not ready after {timeout} s: {self.last_words()}")
            time.sleep(POLL_S)
        return time.perf_counter() - self.started

    def last_words(self):
        """The end of its output."""
        return " ".join(self.log_path.read_text(errors="replace").split())[-400:]

    def stop(self):
        """End it as an operator would; kill it when that takes too long."""
        if self._running.poll() is None:
            self._running.terminate()
            try:
                self._running.wait(STOP_S)
            except subprocess.TimeoutExpired:
                for process in _tree(self.pid):
                    process.kill()
                self._running.wait()


def _tree(pid):
    """A process and all below it; nothing once it is gone."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_s(pid):
    """CPU seconds of a process and all below it so far, those that have ended included."""
    total = 0.0
    for process in _tree(pid):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def memory_bytes(pid):
    """Resident memory of a process and all below it."""
    return sum(process.memory_info().rss for process in _tree(pid))


class Double:
    """The upstream: ``upstream.c`` with the lists that Rialto's sandbox answers."""

    def __init__(self, directory, core):
        lists_path = directory / "lists"
        lists_path.write_text(_lists(directory, core))
        log_path = directory / "upstream.log"
        self._program = Program([compiled("upstream"), lists_path], core=core, log_path=log_path)
        self._program.wait_for(lambda: log_path.read_text().endswith("\n"), 10)
        self.pid, self.port = self._program.pid, int(log_path.read_text())

    def stop(self):
        """End it."""
        self._program.stop()


def _lists(directory, core):
    """Venice's lists as lines for ``upstream.c``; asked of the sandbox once."""
    port = free_port()
    sandbox = Program(
        [sys.executable, "-m", "service.sandbox", "--port", port],
        core=core,
        log_path=directory / "sandbox.log",
    )
    headers = {"Authorization": "Bearer sandbox"}
    # Longer targets first: the double takes the first line that a target ends with.
    kinds = ("all", "asr", "code", "decision", "embedding", "image", "inpaint", "music", "text")
    kinds += ("tts", "upscale", "video")
    paths = ("/models/compatibility_mapping", "/models/traits", "/models")
    targets = [f"{path}?type={kind}" for path in paths for kind in kinds]
    try:
        sandbox.wait_for(lambda: ask(port, "/api/v1/models")[0] == 200, 30)
        lines = []
        for target in (*targets, "/models", "/api_keys/rate_limits"):
            status, body = ask(port, f"/api/v1{target}", headers=headers)
            if status == 200:
                lines.append(f"{target}\t{body.decode().strip()}\n")
    finally:
        sandbox.stop()
    return "".join(lines)
