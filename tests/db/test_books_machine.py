"""A state machine of the ledger: after any operations in any order it agrees with a model."""

import asyncio
from collections import Counter

import asyncpg
import msgspec
import pytest
from books import Books, digest, entry_of
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from support import make_settings

from service import ledger
from service.audit import Actor
from service.database.connections import connect_arguments
from service.database.pool import open_pool
from service.errors import LimitExceeded, RateLimited
from service.ids import uuid7
from service.ledger import CostSource, Ledger, LimitChange, NewLimit

ACTOR = Actor(name="test")
MODELS = ("m", "other")
END_USERS = (None, "alice", "bob")
# Periods that do not end during a test.
UNITS = (
    ("usd", "month"),
    ("usd", "lifetime"),
    ("requests", "hour"),
    ("requests", "month"),
    ("tokens", "hour"),
    ("tokens", "month"),
    ("concurrency", None),
)


class Counted:
    """A limit in the model: one counter, or one for each end user."""

    def __init__(self, new, ceiling):
        self.new, self.ceiling = new, ceiling
        self.used, self.held = Counter(), Counter()
        self.is_rate = new.unit in ("requests", "tokens") and new.period == "hour"

    def binds(self, call):
        return (
            self.new.api_key_id in (None, call.hold.api_key_id)
            and self.new.model in (None, call.hold.model)
            and self.new.end_user in (None, call.end_user)
        )

    def counter(self, call):
        return call.end_user if self.new.each_end_user else None

    def need(self, hold):
        return {"usd": hold.bound_nanos, "tokens": hold.bound_tokens}.get(self.new.unit, 1)

    def fits(self, call):
        at = self.counter(call)
        return self.used[at] + self.held[at] + self.need(call.hold) <= self.ceiling

    def settled(self, nanos, tokens):
        return {"usd": nanos, "tokens": tokens, "requests": 1}.get(self.new.unit, 0)


class Call:
    """An admitted call in the model, and the limits that it counts on."""

    def __init__(self, hold, end_user):
        self.hold, self.end_user = hold, end_user
        self.limits = []
        self.booked = (0, 0)

    def hold_on(self, limits, sign):
        """Add what the call needs to what these limits hold, or take it back."""
        for limit in limits:
            limit.held[limit.counter(self)] += sign * limit.need(self.hold)

    def book(self, nanos, tokens):
        """Replace what is recorded of the call, which is nothing before it is settled."""
        before = self.booked
        for limit in self.limits:
            at = limit.counter(self)
            if limit.new.unit in ("usd", "tokens"):
                more = limit.settled(nanos, tokens) - limit.settled(*before)
                limit.used[at] += more
        self.booked = (nanos, tokens)

    def end(self, nanos, tokens):
        self.hold_on(self.limits, -1)
        for limit in self.limits:
            at = limit.counter(self)
            if limit.new.unit == "requests":
                limit.used[at] += 1
        self.book(nanos, tokens)


class BooksMachine(RuleBasedStateMachine):
    """Two replicas that serve one organization."""

    def __init__(self, runner, database, connection):
        super().__init__()
        self.run, self.database, self.connection = runner.run, database, connection
        self.books = Books(database, connection)
        self.organization_id, self.keys = self.books.organization_id, self.books.keys
        self.replicas = [Ledger(database, uuid7()) for _ in range(2)]
        self.limits, self.open, self.interrupted = {}, [], []
        self.run(self.books.prepare())

    @rule(
        unit=st.sampled_from(UNITS),
        ceiling=st.integers(0, 60),
        key=st.sampled_from([None, 0, 1]),
        model=st.sampled_from([None, None, *MODELS]),
        end_user=st.sampled_from([None, None, "each", "alice", "bob"]),
    )
    def set_a_limit(self, unit, ceiling, key, model, end_user):
        if len(self.limits) >= 8:
            return
        new = NewLimit(
            unit=unit[0],
            period=unit[1],
            ceiling=f"0.{ceiling:09}" if unit[0] == "usd" else ceiling,
            api_key_id=None if key is None else self.keys[key],
            model=model,
            end_user=None if end_user == "each" else end_user,
            each_end_user=end_user == "each",
        )

        async def work():
            async with self.database.transaction() as conn:
                return await ledger.create_limit(
                    conn, ACTOR, self.organization_id, new, new.end_user and digest(new.end_user)
                )

        self.limits[self.run(work())] = Counted(new, ceiling)

    @rule(data=st.data(), ceiling=st.integers(0, 80), is_raise=st.booleans())
    def change_a_ceiling(self, data, ceiling, is_raise):
        """Change a ceiling for good, or raise it until a day after the test."""
        if not self.limits:
            return
        limit_id = data.draw(st.sampled_from(list(self.limits)))
        limit = self.limits[limit_id]
        amount = f"0.{ceiling:09}" if limit.new.unit == "usd" else ceiling
        until = "2999-01-01T00:00:00Z"
        change = msgspec.convert(
            {"raised_to": amount, "raised_until": until}
            if is_raise
            else {"ceiling": amount, "raised_to": None, "raised_until": None},
            LimitChange,
        )

        async def work():
            found = await ledger.find_limit(self.database, limit_id)
            async with self.database.transaction() as conn:
                await ledger.change_limit(conn, ACTOR, found, change)

        self.run(work())
        limit.ceiling = ceiling

    @rule(data=st.data())
    def delete_a_limit(self, data):
        """Delete a limit; calls that it counted are settled anyway."""
        if self.limits:
            limit_id = data.draw(st.sampled_from(list(self.limits)))

            async def work():
                found = await ledger.find_limit(self.database, limit_id)
                async with self.database.transaction() as conn:
                    await ledger.delete_limit(conn, ACTOR, found)

            self.run(work())
            del self.limits[limit_id]

    @rule(
        replica=st.integers(0, 1),
        asked=st.lists(
            st.tuples(
                st.integers(0, 20),
                st.integers(0, 20),
                st.integers(0, 1),
                st.sampled_from(MODELS),
                st.sampled_from(END_USERS),
            ),
            min_size=1,
            max_size=8,
        ),
    )
    def admit_calls(self, replica, asked):
        """Admit calls together at one replica; the verdicts are the model's, one after the
        other."""
        calls = [
            Call(self.books.hold(nanos, tokens, self.keys[key], model, end_user), end_user)
            for nanos, tokens, key, model, end_user in asked
        ]

        async def work():
            admit = self.replicas[replica].admit
            return await asyncio.gather(
                *(admit(call.hold) for call in calls), return_exceptions=True
            )

        for call, outcome in zip(calls, self.run(work()), strict=True):
            binding = [limit for limit in self.limits.values() if limit.binds(call)]
            assert not isinstance(outcome, Exception) or isinstance(
                outcome, LimitExceeded | RateLimited
            ), outcome
            assert isinstance(outcome, Exception) is not all(map(call_fits(call), binding))
            if not isinstance(outcome, Exception):
                call.limits = binding
                call.hold_on(binding, 1)
                self.open.append(call)

    @rule(
        data=st.data(),
        replica=st.integers(0, 1),
        nanos=st.integers(0, 30) | st.none(),
        tokens=st.integers(0, 30) | st.none(),
        source=st.sampled_from(
            [CostSource.REPORTED, CostSource.COMPUTED, CostSource.ESTIMATED, CostSource.NOT_CHARGED]
        ),
        times=st.integers(1, 2),
    )
    def settle_a_call(self, data, replica, nanos, tokens, source, times):
        """Settle a call at any cost, above its bound or unknown, once or twice, at any replica."""
        if not self.open:
            return
        call = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        if source is CostSource.NOT_CHARGED:
            nanos, tokens = 0, None
        entry = entry_of(
            call.hold,
            nanos,
            tokens,
            cost_source=CostSource.UNKNOWN if nanos is None else source,
            output_tokens=tokens and 0,
        )
        for _ in range(times):
            self.run(self.settle(replica, entry))
        bound = call.hold
        if source is CostSource.ESTIMATED and nanos is not None:
            nanos = min(nanos, bound.bound_nanos)
        counted = bound.bound_tokens if tokens is None else tokens
        if source is CostSource.NOT_CHARGED:
            counted = 0
        call.end(bound.bound_nanos if nanos is None else nanos, counted)

    @rule(
        data=st.data(),
        replica=st.integers(0, 1),
        nanos=st.integers(0, 30),
        tokens=st.integers(0, 30),
        model=st.sampled_from(MODELS),
    )
    def move_a_call_to_another_model(self, data, replica, nanos, tokens, model):
        """Move a call to another model: its hold is room for the new hold, and stays if that does
        not fit."""
        if not self.open:
            return
        call = self.open[data.draw(st.integers(0, len(self.open) - 1))]
        before, left = call.hold, call.limits
        hold = msgspec.structs.replace(before, bound_nanos=nanos, bound_tokens=tokens, model=model)

        async def work():
            moved = self.replicas[replica].move(hold)
            return (await asyncio.gather(moved, return_exceptions=True))[0]

        outcome = self.run(work())
        assert not isinstance(outcome, Exception) or isinstance(
            outcome, LimitExceeded | RateLimited
        ), outcome
        call.hold_on(left, -1)
        call.hold = hold
        binding = [limit for limit in self.limits.values() if limit.binds(call)]
        assert isinstance(outcome, Exception) is not all(map(call_fits(call), binding))
        if isinstance(outcome, Exception):
            call.hold, binding = before, left
        call.limits = binding
        call.hold_on(binding, 1)

    @rule(data=st.data())
    def end_a_process(self, data):
        """Sweep some calls of a dead process, which settles them at their bound."""
        count = data.draw(st.integers(0, len(self.open)))
        dead, self.open = self.open[:count], self.open[count:]

        async def work():
            await self.connection.execute(
                "UPDATE holds SET lease_until = now() - interval '1 s' WHERE id = ANY($1)",
                [call.hold.id for call in dead],
            )
            await asyncio.gather(ledger.sweep(self.database), ledger.sweep(self.database))

        self.run(work())
        for call in dead:
            call.end(call.hold.bound_nanos, call.hold.bound_tokens)
        self.interrupted += dead

    @rule(data=st.data(), nanos=st.integers(0, 30), tokens=st.integers(0, 30))
    def settle_a_swept_call(self, data, nanos, tokens):
        """Settle a swept call late, which corrects its entry once."""
        if not self.interrupted:
            return
        call = self.interrupted.pop(data.draw(st.integers(0, len(self.interrupted) - 1)))
        entry = entry_of(
            call.hold, nanos, tokens, cost_source=CostSource.REPORTED, output_tokens=tokens and 0
        )
        for replica in (0, 1):
            self.run(self.settle(replica, entry))
        call.book(nanos, tokens)

    @rule()
    def sweep_end_users(self):
        """Sweep counters: unused ones may go, others stay unchanged."""
        self.run(ledger.sweep_end_users(self.database))

    async def settle(self, replica, entry):
        await self.replicas[replica].settle(entry)

    @invariant()
    def check_the_books(self):
        """The ledger agrees with itself and with the model in every number."""

        async def work():
            proof = await ledger.prove(self.database, self.organization_id)
            standing = await self.connection.fetch(
                "SELECT s.* FROM limits_as_of(ARRAY(SELECT id FROM limits"
                " WHERE organization_id = $1), clock_timestamp()) s",
                self.organization_id,
            )
            return proof, standing

        proof, standing = self.run(work())
        assert proof.faults == []
        names = {digest(name) if name else b"": name for name in END_USERS}
        for row in standing:
            limit = self.limits.get(row["template_id"] or row["id"])
            if limit is None or row["scope"] == "each_end_user":
                continue
            at = names[row["end_user"]] if row["template_id"] else None
            used, held = limit.used[at], limit.held[at]
            stands = (used + held, 0) if limit.is_rate else (used, held)
            assert (row["used"], row["held"]) == stands, limit.new
            assert row["ceiling"] == limit.ceiling

    def teardown(self):
        for replica in self.replicas:
            self.run(replica.flush(1))


def call_fits(call):
    return lambda limit: limit.fits(call)


@pytest.mark.slow
def test_the_books_agree_whatever_happens(database_address):
    """The ledger agrees with the model after limits are set, changed and deleted and calls are
    admitted, settled, swept and corrected."""

    async def opened():
        connection = await asyncpg.connect(**connect_arguments(database_address))
        pool = open_pool(make_settings(database_address, "http://x"), database_address)
        return connection, pool, await pool.__aenter__()

    with asyncio.Runner() as runner:
        connection, pool, database = runner.run(opened())
        try:
            run_state_machine_as_test(
                lambda: BooksMachine(runner, database, connection),
                settings=settings(
                    max_examples=max(settings.default.max_examples // 3, 10),
                    stateful_step_count=30,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(connection.close())
            runner.run(pool.__aexit__(None, None, None))
