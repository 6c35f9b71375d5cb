"""Asks Venice what became of the jobs in its queue. A job that fails may be refunded, and then the
books give its price back, whether or not its caller asks."""

import asyncio
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import msgspec

from service import ledger, stored
from service.background.repeated import every
from service.database.database import Database
from service.errors import ServiceError, UpstreamError, UpstreamRejected
from service.stored import Generation, GenerationStatus
from service.upstream import Venice

INTERVAL_S: Final = 15.0
MAX_POLLS_AT_ONCE: Final = 10
"""With the interval, a third of what Venice allows an account. The rest is for callers."""
JOBS_A_PAGE: Final = 1000
SEEN_WITHIN: Final = timedelta(minutes=10)
UNKNOWN_STATUSES: Final = (400, 404)
"""Venice's statuses for a job that it does not know, or not any more."""


def keep_queued_jobs(database: Database, venice: Venice) -> asyncio.Task[None]:
    """Follow the jobs that callers queue until it is known what became of each."""
    after: datetime | None = None

    async def work() -> None:
        nonlocal after
        if after is None:
            after = await database.now() - stored.LIFETIME
        after = await follow_jobs(database, after)
        await poll_jobs(database, venice)
        await stored.forget(database)

    # Requests of a process that has just started go to the database first.
    return every(INTERVAL_S, work, "generations", waits_first=True)


async def follow_jobs(database: Database, after: datetime) -> datetime:
    """Follow the jobs that were booked after a time; returns the time to continue from."""
    after_id = UUID(int=0)
    while queued := await ledger.list_jobs(database, after, after_id, JOBS_A_PAGE):
        await stored.follow(database, [_generation(job) for job in queued])
        after, after_id = queued[-1].counted_at, queued[-1].id
    # A booking is visible when its transaction ends, which may be after that of a later one.
    return min(after, await database.now() - SEEN_WITHIN)


async def poll_jobs(database: Database, venice: Venice) -> None:
    """Ask for the jobs that are due, as many at once as leave room for callers' own questions."""
    due = await stored.claim(database, MAX_POLLS_AT_ONCE)
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
    """Ask for one job and record what became of it."""
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
            # An error of Venice or of its key is no news of the job.
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
