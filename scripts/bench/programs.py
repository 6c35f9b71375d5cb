"""Builds, starts on a core, waits for, counts and stops the programs that take part."""

import hashlib
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
"""The directory of installed and compiled programs, kept between runs."""
KEPT = ("PATH", "HOME")
POLL_S = 0.005
STOP_S = 30
INSTALL_S = 900
SETTLE_S = 0.3
"""How long work may continue after the last response, to be counted with it."""


class BenchError(Exception):
    """The bench cannot continue; the message has the reason."""


def cores():
    """Return the core of load, upstream and PostgreSQL, and the gateway's core. They are the same
    on a machine with one core."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[-1]


def compiled(name):
    """Compile ``name.c`` unless this text of it was; return the program's path.

    :raises BenchError: if gcc fails.
    """
    source = SOURCES / f"{name}.c"
    # Checkouts may share the directory, and a newer file may be an earlier text.
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    program = CACHE / "bin" / f"{name}-{digest[:16]}"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        # Other benches may compile or run it now, so it is replaced as a whole.
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
    """Run a step of an installation; return its output.

    :raises BenchError: if it fails, with the end of its output.
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
        output = " ".join(ran.stdout.split())[-300:]
        raise BenchError(f"{Path(arguments[0]).name} {arguments[1]} failed: {output}")
    return ran.stdout


def free_port():
    """Return a port of 127.0.0.1 that is not in use."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def ask(port, path, *, headers=None, body=None, timeout=10):
    """Send a request to 127.0.0.1; return status and body. The status is 0 if nobody answers."""
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
    """A process on one core with its output in a file."""

    def __init__(self, arguments, *, core, log_path, environment=None, cwd=ROOT):
        self.log_path = log_path
        self.started = time.perf_counter()
        with log_path.open("ab") as log:
            self._running = subprocess.Popen(
                ["taskset", "-c", str(core), *map(str, arguments)],
                cwd=cwd,
                # The environment has none of the developer's settings.
                env={**{name: os.environ.get(name, "") for name in KEPT}, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.pid = self._running.pid

    def wait_for(self, is_ready, timeout):
        """Wait for ``is_ready()``; return the seconds since the start.

        :raises BenchError: if the process ends or takes too long, with the end of its output.
        """
        while not is_ready():
            if self._running.poll() is not None:
                raise BenchError(f"it ended: {self.end_of_output()}")
            if time.perf_counter() - self.started > timeout:
                raise BenchError(f"not ready after {timeout} s: {self.end_of_output()}")
            time.sleep(POLL_S)
        return time.perf_counter() - self.started

    def end_of_output(self):
        """Return the end of the output."""
        return " ".join(self.log_path.read_text(errors="replace").split())[-400:]

    def stop(self):
        """Stop the process with SIGTERM; kill it if that takes too long."""
        if self._running.poll() is None:
            self._running.terminate()
            try:
                self._running.wait(STOP_S)
            except subprocess.TimeoutExpired:
                for process in _tree(self.pid):
                    process.kill()
                self._running.wait()


def _tree(pid):
    """Return a process and all its descendants; nothing once it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_s(pid):
    """Return the CPU seconds of a process and all its descendants so far, including those that have
    ended."""
    total = 0.0
    for process in _tree(pid):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def memory_bytes(pid):
    """Return the resident memory of a process and all its descendants."""
    return sum(process.memory_info().rss for process in _tree(pid))


class Double:
    """The upstream: ``upstream.c`` with the lists that Rialto's sandbox returns."""

    def __init__(self, directory, core):
        lists_path = directory / "lists"
        lists_path.write_text(_lists(directory, core))
        log_path = directory / "upstream.log"
        self._program = Program([compiled("upstream"), lists_path], core=core, log_path=log_path)
        self._program.wait_for(lambda: log_path.read_text().endswith("\n"), 10)
        self.pid, self.port = self._program.pid, int(log_path.read_text())

    def stop(self):
        """Stop the upstream."""
        self._program.stop()


def _lists(directory, core):
    """Ask the sandbox once for Venice's lists; return them as lines for ``upstream.c``."""
    port = free_port()
    sandbox = Program(
        [sys.executable, "-m", "service.sandbox", "--port", port],
        core=core,
        log_path=directory / "sandbox.log",
    )
    headers = {"Authorization": "Bearer sandbox"}
    # Longer targets come first, because the upstream takes the first line that a target ends with.
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
