"""Work that no request waits for."""

import asyncio
import contextlib
import math
import random
import time
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import msgspec
import structlog

from service import accounts, audit, ledger, stored, upstream
from service.audit import OPERATOR_ORGANIZATION_ID, RIALTO, Actor
from service.crypto import Keyring
from service.database.connections import Database
from service.errors import ServiceError, StartupError, Unavailable, UpstreamError, UpstreamRejected
from service.ledger import Ledger
from service.stored import Generation, GenerationStatus
from service.telemetry import metrics
from service.upstream import UpstreamKey, UpstreamKeys, Venice

log = structlog.get_logger()

PARTITIONS_EVERY_S: Final = 6 * 3600.0
MAX_PARTITIONS_RETRY_S: Final = 900.0
RETENTION_EVERY_S: Final = 6 * 3600.0
RETENTION: Final = Actor(name="retention")
RETRY_S: Final = 60.0
LEASES_EVERY_S: Final = 15.0
REHEARSAL_S: Final = 5.0
IDLE_S: Final = 15.0
REHEARSE_FIRST_S: Final = 0.2
REHEARSE_AGAIN_S: Final = 1.0
MAX_REHEARSE_PAUSE_S: Final = 5.0
BALLAST_BYTES: Final = 48 * 1024
COMMIT: Final = "SELECT pg_logical_emit_message(true, 'rialto', '')"
"""Writes to the write-ahead log and to no table. Its commit waits for what any commit waits for,
as a synchronous standby; a transaction that is taken back waits for nothing."""
ALERTS_EVERY_S: Final = 60.0
ALERTS_PAUSE_S: Final = 1.0
END_USERS_EVERY_S: Final = 600.0
UPSTREAM_KEYS_EVERY_S: Final = 10.0
UPSTREAM_KEYS_PAUSE_S: Final = 1.0
BALANCES_EVERY_S: Final = 300.0
FIRST_BALANCES_S: Final = 30.0
"""A start has better things to ask Venice."""
GENERATIONS_EVERY_S: Final = 15.0
GENERATIONS_AT_ONCE: Final = 10
"""With the time between: a third of what Venice allows an account, the rest is the callers'."""
JOBS_A_PAGE: Final = 1000
SEEN_WITHIN: Final = timedelta(minutes=10)
UNKNOWN_STATUSES: Final = (400, 404)
"""What Venice says of a job that it does not know, or not any more."""
DAY_S: Final = 86_400.0
CLOCK_EVERY_S: Final = 600.0
MAX_CLOCK_DIFFERENCE_S: Final = 5.0
ORGANIZATIONS_A_PAGE: Final = 1000


async def keep_partitions(database: Database) -> None:
    """Make the ledger's months three ahead, for ever; so a failure has time to be mended. While
    somebody reads the ledger none can be made: retries come less and less often."""
    retry_s = RETRY_S
    while True:
        is_complete = False
        try:
            is_complete = await ledger.make_partitions(database)
        except Unavailable as error:
            log.warning("ledger partitions not made", error=str(error), retry_s=retry_s)
        except Exception:
            log.exception("ledger partitions not made", retry_s=retry_s)
        if is_complete:
            retry_s = RETRY_S
            await asyncio.sleep(PARTITIONS_EVERY_S)
        else:
            await asyncio.sleep(retry_s * random.uniform(0.8, 1.2))  # noqa: S311 - not a secret
            retry_s = min(retry_s * 2, MAX_PARTITIONS_RETRY_S)


class _TakenBack(Exception):
    """Ends a transaction without a trace."""


async def rehearse(books: Ledger, database: Database, ballast_bytes: int = 0) -> None:
    """Do all that a call needs of the database, and take it back; then commit a transaction.

    :raises Exception: whatever stands in the way of any call.
    """
    async with asyncio.timeout(REHEARSAL_S):
        with contextlib.suppress(_TakenBack):
            async with database.transaction() as conn:
                await books.rehearse(conn, await accounts.create_passing_key(conn), ballast_bytes)
                raise _TakenBack
        await database.fetch(COMMIT)


async def keep_rehearsed(books: Ledger, database: Database) -> None:
    """Rehearse a call, for ever: when there was no write for a while, so that health is right
    before the first call; and after a failure, so that health is right when its cause is gone."""
    condition = books.condition
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(IDLE_S):
                await condition.has_changed.wait()
        condition.has_changed.clear()
        if condition.problem is None and condition.age_s < IDLE_S:
            continue
        try:
            await rehearse(books, database, BALLAST_BYTES if condition.problem else 0)
        except Exception as error:  # noqa: BLE001 - whatever it is, health has its class
            condition.failed(error)
            await asyncio.sleep(REHEARSE_AGAIN_S)
        else:
            condition.succeeded()


async def rehearse_until_it_works(books: Ledger, database: Database, timeout_s: float) -> None:
    """Wait until calls can be admitted; each attempt is logged.

    :raises StartupError: when that takes too long, or waiting would not help.
    """
    ends_at = time.monotonic() + timeout_s
    pause_s = REHEARSE_FIRST_S
    while True:
        try:
            await rehearse(books, database, BALLAST_BYTES)
        except Exception as error:
            books.condition.failed(error)
            problem = books.condition.problem or type(error).__name__
            may_pass = isinstance(error, Unavailable | TimeoutError)
            if not may_pass or time.monotonic() + pause_s > ends_at:
                raise StartupError(
                    f"The database does not take what a call writes: {problem}.",
                    "Check that DATABASE_URL names the primary server, that its disk has room, and"
                    " that its user may write to every table of the schema `public`.",
                ) from error
            log.warning("the books cannot be written yet", error=problem, next_try_s=pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, MAX_REHEARSE_PAUSE_S)
        else:
            books.condition.succeeded()
            return


async def keep_upstream_keys(
    database: Database, keyring: Keyring, venice: Venice, environment_secret: str
) -> None:
    """Use the stored keys, ask Venice about those that are new, and store the answers, for ever."""
    balances, findings = Balances(), Findings()
    while True:
        venice.keys.has_changed.clear()
        try:
            venice.keys.replace(await upstream.load(database, keyring, environment_secret))
            # A start has better things to ask Venice.
            await asyncio.sleep(UPSTREAM_KEYS_PAUSE_S)
            metrics.UPSTREAM_RESTING.set(len(venice.keys.resting()))
            await _check_new(database, venice)
            await findings.record(database, venice.keys)
            await balances.check(database, venice)
        except Unavailable as error:
            log.warning("upstream keys not read", error=str(error), retry_s=UPSTREAM_KEYS_EVERY_S)
        except Exception:
            log.exception("upstream keys not read", retry_s=UPSTREAM_KEYS_EVERY_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(UPSTREAM_KEYS_EVERY_S):
                await venice.keys.has_changed.wait()


class Findings:
    """What was found of keys, and how much of that is recorded."""

    def __init__(self) -> None:
        self._recorded: dict[UUID, float] = {}

    async def record(self, database: Database, keys: UpstreamKeys) -> None:
        """Record what is new."""
        for key in keys.all:
            found = keys.findings.get(key.id)
            if found is not None and found.at != self._recorded.get(key.id):
                await upstream.record(database, key, found)
                self._recorded[key.id] = found.at


async def _check_new(database: Database, venice: Venice) -> None:
    new = [key for key in venice.keys.all if key.id not in venice.keys.findings]
    await asyncio.gather(*(upstream.check(database, venice, key) for key in new))


async def _audit(database: Database, action: str, key_id: UUID, detail: dict[str, Any]) -> None:
    async with database.transaction() as conn:
        await audit.record(conn, OPERATOR_ORGANIZATION_ID, RIALTO, action, str(key_id), detail)


class Balances:
    """What keys may still spend, and whether that lasts a day."""

    def __init__(self) -> None:
        self._checked_at = time.monotonic() - BALANCES_EVERY_S + FIRST_BALANCES_S
        self._before: dict[UUID, float] = {}
        self._low: set[UUID] = set()

    async def check(self, database: Database, venice: Venice) -> None:
        """Ask Venice, if the last time is long ago."""
        elapsed_s = time.monotonic() - self._checked_at
        if elapsed_s < BALANCES_EVERY_S:
            return
        self._checked_at = time.monotonic()
        for key in venice.keys.all:
            state = (await venice.examine(key, upstream.KEY_TIMEOUT_S)).state
            if state is None:
                continue
            await upstream.note_state(database, key, state)
            balance_usd = state.balances.get("USD")
            if balance_usd is None:
                continue
            metrics.UPSTREAM_BALANCE_USD.labels(key.name).set(balance_usd)
            spent_usd = self._before.get(key.id, balance_usd) - balance_usd
            self._before[key.id] = balance_usd
            await self._warn(database, key, balance_usd, spent_usd / elapsed_s)

    async def _warn(
        self, database: Database, key: UpstreamKey, balance_usd: float, usd_a_second: float
    ) -> None:
        if usd_a_second <= 0 or balance_usd / usd_a_second > DAY_S:
            self._low.discard(key.id)
            return
        hours = balance_usd / usd_a_second / 3600
        log.warning("upstream balance is low", key=key.name, hours_left=round(hours, 1))
        if key.id not in self._low:
            self._low.add(key.id)
            detail = {"name": key.name, "balance_usd": balance_usd, "hours_left": round(hours, 1)}
            await _audit(database, "upstream_key.low", key.id, detail)


async def keep_alerts(books: Ledger, database: Database) -> None:
    """Announce the thresholds that limits have reached, for ever: when a settlement has brought one
    there, and now and then, since the process that knew of it may be gone."""
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ALERTS_EVERY_S):
                await books.alerts_are_due.wait()
        books.alerts_are_due.clear()
        try:
            await ledger.announce(database)
            await books.report_implausible()
        except Exception:
            log.exception("alerts not announced", retry_s=ALERTS_EVERY_S)
        # What is reached in the meantime goes with the next time.
        await asyncio.sleep(ALERTS_PAUSE_S)


async def keep_end_users(database: Database) -> None:
    """Take away counters of end users that count nothing any more, for ever."""
    while True:
        await asyncio.sleep(END_USERS_EVERY_S)
        try:
            await ledger.sweep_end_users(database)
        except Exception:
            log.exception("end users not swept", retry_s=END_USERS_EVERY_S)


async def keep_generations(database: Database, venice: Venice) -> None:
    """Ask Venice what became of the jobs in its queue until that is known, for ever: one that fails
    may be refunded, and then the books give its price back, whether or not its caller asks."""
    after = None
    while True:
        # A start has better things to ask the database.
        await asyncio.sleep(GENERATIONS_EVERY_S)
        try:
            if after is None:
                after = await database.now() - stored.LIFETIME
            after = await follow_jobs(database, after)
            await poll_jobs(database, venice)
            await stored.forget(database)
        except Unavailable as error:
            log.warning("queued jobs not followed", error=str(error), retry_s=GENERATIONS_EVERY_S)
        except Exception:
            log.exception("queued jobs not followed", retry_s=GENERATIONS_EVERY_S)


async def follow_jobs(database: Database, after: datetime) -> datetime:
    """Follow the jobs that were booked after a time; returns the one to look after next."""
    after_id = UUID(int=0)
    while queued := await ledger.list_jobs(database, after, after_id, JOBS_A_PAGE):
        await stored.follow(database, [_generation(job) for job in queued])
        after, after_id = queued[-1].counted_at, queued[-1].id
    # What is booked is seen when its transaction ends, which may be later than one booked after it.
    return min(after, await database.now() - SEEN_WITHIN)


async def poll_jobs(database: Database, venice: Venice) -> None:
    """Ask for the jobs that are due, so many at once as the callers' own questions leave room."""
    due = await stored.claim(database, GENERATIONS_AT_ONCE)
    polls = [_poll(database, venice, generation) for generation in due]
    for ended in await asyncio.gather(*polls, return_exceptions=True):
        if isinstance(ended, BaseException):
            raise ended


def _generation(job: ledger.QueuedJob) -> Generation:
    return Generation(
        organization_id=job.organization_id,
        id=job.call_id,
        api_key_id=job.api_key_id,
        kind=job.endpoint.split("/")[1],
        path=job.endpoint,
        model=job.model,
        upstream_key_id=job.upstream_key_id,
        upstream_reference=job.upstream_request_id,
        queued_at=job.counted_at,
    )


async def _poll(database: Database, venice: Venice, generation: Generation) -> None:
    """Ask for one job, and write down what became of it."""
    if generation.is_forgotten:
        await stored.finish(database, generation, GenerationStatus.EXPIRED)
        return
    path = generation.path.removesuffix("/queue") + "/retrieve"
    ticket = {"model": generation.model, "queue_id": generation.upstream_reference}
    body = msgspec.json.encode(ticket)
    organization_id, key_id = generation.organization_id, generation.upstream_key_id
    try:
        state = await venice.job_state(path, body, organization_id, key_id)
    except ServiceError as error:
        is_refunded = isinstance(error, UpstreamError) and error.is_refunded
        if not is_refunded and not isinstance(error, UpstreamRejected):
            # Venice, or its key, is in trouble: that says nothing of the job.
            return
        is_known = error.status not in UNKNOWN_STATUSES
        status = GenerationStatus.FAILED if is_known else GenerationStatus.EXPIRED
    else:
        if state.is_processing:
            return
        is_refunded = state.is_refunded
        status = GenerationStatus.FAILED if is_refunded else GenerationStatus.COMPLETED
    if is_refunded:
        await ledger.refund(database, organization_id, generation.id)
    await stored.finish(database, generation, status)


async def keep_retention(database: Database, months: int) -> None:
    """Drop the ledger's months that are older than so many, for ever."""
    while True:
        try:
            await ledger.retain(database, RETENTION, months)
            await asyncio.sleep(RETENTION_EVERY_S)
        except Exception:
            log.exception("ledger months not dropped", retry_s=RETRY_S)
            await asyncio.sleep(RETRY_S)


async def every_organization(database: Database) -> AsyncIterator[UUID]:
    """Their ids, the operator's first."""
    page = [OPERATOR_ORGANIZATION_ID]
    while page:
        for organization_id in page:
            yield organization_id
        found = await accounts.list_organizations(database, page[-1], ORGANIZATIONS_A_PAGE)
        page = [organization.id for organization in found]


async def keep_books_proven(database: Database, interval_s: float) -> None:
    """Prove the books every ``interval_s``, for ever. Each replica does, at a time of its own: that
    costs little, and none has to be the chosen one."""
    while True:
        await asyncio.sleep(interval_s * random.uniform(0.9, 1.1))  # noqa: S311 - not a secret
        try:
            await _prove_books(database)
        except Exception:
            log.exception("books not proven", retry_s=interval_s)


async def _prove_books(database: Database) -> None:
    started_at = time.monotonic()
    organizations = entries = faults = 0
    async for organization_id in every_organization(database):
        proof = await ledger.prove(database, organization_id)
        break_at = await audit.first_break(database, organization_id)
        organizations += 1
        entries += proof.entries
        faults += len(proof.faults) + (break_at is not None)
        of_organization = {"organization_id": str(organization_id)}
        for fault in proof.faults:
            log.error("books disagree", **of_organization, **msgspec.to_builtins(fault))
        if break_at is not None:
            log.error("chain of audit events breaks", **of_organization, sequence=break_at)
    duration_s = time.monotonic() - started_at
    metrics.AUDIT_FAULTS.set(faults)
    metrics.AUDIT_SECONDS.set(duration_s)
    metrics.AUDIT_FINISHED.set_to_current_time()
    log.info(
        "books proven",
        organizations=organizations,
        entries=entries,
        faults=faults,
        duration_ms=round(duration_s * 1000),
    )


async def keep_clock(database: Database) -> None:
    """Compare this process's clock with the database's at the start and then regularly, for ever,
    and warn when they differ. The books go by the database's alone; what else a process times by
    its own clock, such as the end of a key's life, is off by the difference."""
    while True:
        try:
            difference_s = await measure_clock(database)
        except Unavailable as error:
            log.warning("clock not compared", error=str(error), retry_s=CLOCK_EVERY_S)
        else:
            if abs(difference_s) > MAX_CLOCK_DIFFERENCE_S:
                log.warning(
                    "clock differs from the database's",
                    ahead_s=round(difference_s, 1),
                    hint="Synchronize the clocks of this machine and of the database (NTP).",
                )
        await asyncio.sleep(CLOCK_EVERY_S)


async def measure_clock(database: Database) -> float:
    """How many seconds this process's clock is ahead of the database's, as exactly as the time
    that the answer takes allows."""
    asked_at = time.time()
    now = await database.now()
    answered_at = time.time()
    difference_s = (asked_at + answered_at) / 2 - now.timestamp()
    # Anything within half of the round trip may be none at all.
    surely_s = max(0.0, abs(difference_s) - (answered_at - asked_at) / 2)
    difference_s = math.copysign(surely_s, difference_s)
    metrics.CLOCK_AHEAD.set(difference_s)
    return difference_s


async def keep_leases(books: Ledger, database: Database) -> None:
    """Renew the leases of this process's calls and settle those that have run out, for ever."""
    while True:
        try:
            # Its own first: after an outage they have run out too, but their calls are alive.
            await books.renew_leases()
            await ledger.sweep(database)
        except Exception:
            log.exception("leases not kept", retry_s=LEASES_EVERY_S)
        await asyncio.sleep(LEASES_EVERY_S)
