"""Proves the books of every organization."""

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Final
from uuid import UUID

import msgspec
import structlog

from service import accounts, audit, ledger
from service.audit import OPERATOR_ORGANIZATION_ID
from service.background.repeated import every
from service.database.database import Database
from service.telemetry import metrics

log = structlog.get_logger()

ORGANIZATIONS_A_PAGE: Final = 1000


def keep_books_proven(database: Database, interval_s: float) -> asyncio.Task[None]:
    """Prove the books every ``interval_s``. Each replica does, at a time of its own: that costs
    little, and none has to be chosen."""
    work = partial(_prove_books, database)
    return every(interval_s, work, "audit", waits_first=True, jitter=0.1)


async def every_organization(database: Database) -> AsyncIterator[UUID]:
    """Yield the id of every organization, the operator's first."""
    page = [OPERATOR_ORGANIZATION_ID]
    while page:
        for organization_id in page:
            yield organization_id
        found = await accounts.list_organizations(database, page[-1], ORGANIZATIONS_A_PAGE)
        page = [organization.id for organization in found]


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
