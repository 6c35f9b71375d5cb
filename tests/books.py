"""The ledger without a service: an organization, its limits, and calls that ask for admission."""

import asyncio
import hashlib

from service import ledger
from service.errors import ServiceError
from service.ids import uuid7
from service.ledger import CostSource, Entry, Hold, Ledger, Outcome

EACH_USER = "each end user"


def digest(end_user):
    """Return a digest of the same length as a real one."""
    return hashlib.sha256(end_user.encode()).digest()[:16]


class Books:
    """A database with an organization, its keys and limits, and a ledger that works on it."""

    def __init__(self, database, connection):
        self.database = database
        self.connection = connection
        self.ledger = Ledger(database, uuid7())
        self.organization_id = uuid7()
        self.keys = [uuid7(), uuid7()]

    async def prepare(self):
        await self.connection.execute(
            "INSERT INTO organizations (id, name) VALUES ($1, 'a')", self.organization_id
        )
        for key in self.keys:
            await self.connection.execute(
                "INSERT INTO api_keys (id, organization_id, name, role, digest, prefix)"
                " VALUES ($1, $2, 'k', 'inference', $3, 'rk_')",
                key,
                self.organization_id,
                key.bytes * 2,
            )

    async def limit(self, unit, period, ceiling, key=None, model=None, end_user=None):
        """Set a limit, for one end user or for EACH_USER; return its id."""
        limit_id = uuid7()
        scope = "api_key" if key else "organization"
        if end_user:
            scope = "each_end_user" if end_user is EACH_USER else "end_user"
        await self.connection.execute(
            "INSERT INTO limits (organization_id, id, scope, api_key_id, model, unit, period,"
            " ceiling, end_user) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            self.organization_id,
            limit_id,
            scope,
            key,
            model,
            unit,
            period,
            ceiling,
            None if end_user in (None, EACH_USER) else digest(end_user),
        )
        return limit_id

    def hold(self, nanos=1, tokens=1, key=None, model="m", end_user=None, **least):
        return Hold(
            organization_id=self.organization_id,
            id=uuid7(),
            api_key_id=key or self.keys[0],
            request_id="r",
            endpoint="/chat/completions",
            model=model,
            is_stream=False,
            bound_nanos=nanos,
            bound_tokens=tokens,
            end_user=digest(end_user).hex() if end_user else None,
            **least,
        )

    async def admitted(self, holds):
        """Admit calls that arrive together; return for each whether it was admitted."""
        outcomes = await asyncio.gather(*map(self.ledger.admit, holds), return_exceptions=True)
        for outcome in outcomes:
            assert not isinstance(outcome, Exception) or isinstance(outcome, ServiceError), outcome
        return [not isinstance(outcome, Exception) for outcome in outcomes]

    async def settle(self, hold, nanos=1, tokens=1, **changes):
        await self.ledger.settle(entry_of(hold, nanos, tokens, **changes))

    async def wait_for(self, condition):
        """Wait until the query returns true."""
        async with asyncio.timeout(10):
            while not await self.connection.fetchval(condition):
                await asyncio.sleep(0.02)

    async def change(self, function, old, new):
        """Replace a piece of a database function's text."""
        source = await self.connection.fetchval(
            f"SELECT pg_get_functiondef('public.{function}'::regproc)"
        )
        assert old in source
        await self.connection.execute(source.replace(old, new, 1))

    async def slow_down(
        self, function="write_holds", before="INSERT INTO public.holds", without="", instead=""
    ):
        """Make a database function wait 0.3 s before a statement, and optionally remove a guard
        from it."""
        await self.change(function, before, f"PERFORM pg_sleep(0.3);\n    {before}")
        if without:
            await self.change(function, without, instead)

    async def age_by_a_day(self, end_user=None):
        """Move everything that was counted for the end user, or for no end user, a day into the
        past."""
        counted = (
            "limit_windows = ARRAY("
            " SELECT at - interval '1 day' * coalesce(w.at = l.window_start, false)::integer"
            " FROM unnest(limit_ids, limit_windows) WITH ORDINALITY AS w (id, at, place)"
            " JOIN limits l USING (id) ORDER BY place)"
        )
        async with self.connection.transaction():
            await self.connection.execute("SET LOCAL session_replication_role = replica")
            for table, change in (
                ("holds", counted),
                ("ledger_entries", counted),
                ("limits", "window_start = window_start - interval '1 day'"),
            ):
                await self.connection.execute(
                    f"UPDATE {table} SET {change} WHERE end_user IS NOT DISTINCT FROM $1",
                    digest(end_user) if end_user else None,
                )

    async def state(self, limit_id):
        limit = await ledger.find_limit(self.database, limit_id)
        return limit.used, limit.held

    async def audit(self):
        """Assert that the audit finds no faults."""
        assert (await ledger.prove(self.database, self.organization_id)).faults == []


def entry_of(hold, nanos, tokens, **changes):
    """Return an entry for a call that succeeded."""
    facts = {
        "hold": hold,
        "model": hold.model,
        "outcome": Outcome.OK,
        "status": 200,
        "input_tokens": tokens,
        "cached_input_tokens": 0,
        "output_tokens": 0,
        "cost_nanos": nanos,
        "cost_source": CostSource.REPORTED,
        "upstream_request_id": None,
        "first_byte_ms": 1,
        "duration_ms": 2,
    }
    return Entry(**{**facts, **changes})
