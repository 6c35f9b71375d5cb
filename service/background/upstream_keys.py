"""Keeps the keys at Venice current: which are stored, what Venice reports of each, what they may
still spend."""

import asyncio
import time
from typing import Any, Final
from uuid import UUID

import structlog

from service import audit, upstream
from service.audit import OPERATOR_ORGANIZATION_ID, RIALTO
from service.background.repeated import every
from service.crypto import Keyring
from service.database.database import Database
from service.telemetry import metrics
from service.upstream import UpstreamKey, UpstreamKeys, Venice

log = structlog.get_logger()

INTERVAL_S: Final = 10.0
CHECK_DELAY_S: Final = 1.0
"""Requests of a process that has just started go to Venice first."""
BALANCES_EVERY_S: Final = 300.0
FIRST_BALANCES_S: Final = 30.0
"""Delays the first balance check, so that requests of a process that has just started go first."""
DAY_S: Final = 86_400.0


def keep_upstream_keys(
    database: Database, keyring: Keyring, venice: Venice, environment_secret: str
) -> asyncio.Task[None]:
    """Use the stored keys, ask Venice about those that are new, and store the answers."""
    balances, findings = Balances(), Findings()

    async def work() -> None:
        venice.keys.replace(await upstream.load(database, keyring, environment_secret))
        await asyncio.sleep(CHECK_DELAY_S)
        metrics.UPSTREAM_RESTING.set(len(venice.keys.out_of_service()))
        await _check_new(database, venice)
        await findings.record(database, venice.keys)
        await balances.check(database, venice)

    return every(INTERVAL_S, work, "upstream keys", wake=venice.keys.has_changed)


async def _check_new(database: Database, venice: Venice) -> None:
    new = [key for key in venice.keys.all if key.id not in venice.keys.findings]
    await asyncio.gather(*(upstream.check(database, venice, key) for key in new))


class Findings:
    """Records each finding about a key once."""

    def __init__(self) -> None:
        self._recorded: dict[UUID, float] = {}

    async def record(self, database: Database, keys: UpstreamKeys) -> None:
        """Record the findings that are new."""
        for key in keys.all:
            found = keys.findings.get(key.id)
            if found is not None and found.at != self._recorded.get(key.id):
                await upstream.record(database, key, found)
                self._recorded[key.id] = found.at


class Balances:
    """What keys may still spend, and whether that lasts a day."""

    def __init__(self) -> None:
        self._checked_at = time.monotonic() - BALANCES_EVERY_S + FIRST_BALANCES_S
        self._before: dict[UUID, float] = {}
        self._low: set[UUID] = set()

    async def check(self, database: Database, venice: Venice) -> None:
        """Ask Venice for each key's balance, at most every ``BALANCES_EVERY_S``."""
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
        self, database: Database, key: UpstreamKey, balance_usd: float, usd_per_s: float
    ) -> None:
        if usd_per_s <= 0 or balance_usd / usd_per_s > DAY_S:
            self._low.discard(key.id)
            return
        hours = balance_usd / usd_per_s / 3600
        log.warning("upstream balance is low", key=key.name, hours_left=round(hours, 1))
        if key.id not in self._low:
            self._low.add(key.id)
            detail = {"name": key.name, "balance_usd": balance_usd, "hours_left": round(hours, 1)}
            await _audit(database, "upstream_key.low", key.id, detail)


async def _audit(database: Database, action: str, key_id: UUID, detail: dict[str, Any]) -> None:
    async with database.transaction() as conn:
        await audit.record(conn, OPERATOR_ORGANIZATION_ID, RIALTO, action, str(key_id), detail)
