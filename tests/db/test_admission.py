"""Admission and settlement in the database decide as a greedy model does, and their sums agree."""

import asyncio
import random
import re
from collections import Counter
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from books import EACH_USER, Books, digest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service import ledger
from service.errors import LimitExceeded, RateLimited, Unavailable
from service.ids import uuid7
from service.ledger import Ledger
from service.ledger.writer import LEASE_S, SETTLE_AND_ADMIT

MODELS = ("m", "other")
END_USERS = ("alice", "bob")
UNITS = [
    ("usd", "month"),
    ("usd", "day"),
    ("usd", "lifetime"),
    ("usd", "minute"),
    ("requests", "minute"),
    ("requests", "hour"),
    ("requests", "day"),
    ("tokens", "minute"),
    ("tokens", "hour"),
    ("tokens", "month"),
    ("concurrency", None),
]


@pytest.mark.parametrize(("unit", "period"), UNITS)
async def test_exactly_as_many_as_fit(books, unit, period):
    """Of 300 concurrent calls exactly the 37 that fit are admitted, for every unit and period."""
    await books.limit(unit, period, 37)

    admitted = await books.admitted([books.hold() for _ in range(300)])

    assert sum(admitted) == 37
    assert admitted == sorted(admitted, reverse=True)


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize(("unit", "period"), [("usd", "month"), ("requests", "hour")])
async def test_exactly_as_many_as_fit_on_several_processes(books, processes, unit, period):
    """Replicas that share only the database admit exactly as many calls as fit."""
    await books.limit(unit, period, 100)
    ledgers = [Ledger(books.database, uuid7()) for _ in range(processes)]

    outcomes = await asyncio.gather(
        *(ledgers[n % processes].admit(books.hold()) for n in range(600)), return_exceptions=True
    )

    assert sum(not isinstance(outcome, Exception) for outcome in outcomes) == 100


@pytest.mark.parametrize("is_guarded", [True, False])
async def test_the_lock_is_what_keeps_replicas_apart(books, is_guarded):
    """Without the row lock two replicas that decide concurrently would both use the same room."""
    await books.slow_down()
    if not is_guarded:
        await books.change("lock_limits_v2", "FOR NO KEY UPDATE", "")
    await books.limit("usd", "month", 100)
    ledgers = [Ledger(books.database, uuid7()) for _ in range(2)]

    outcomes = await asyncio.gather(
        *(books_of.admit(books.hold(100)) for books_of in ledgers), return_exceptions=True
    )

    assert sum(not isinstance(outcome, Exception) for outcome in outcomes) == 2 - is_guarded
    if not is_guarded:
        # Without the lock the second process overwrites the first one's sum.
        (fault,) = (await ledger.prove(books.database, books.organization_id)).faults
        assert (fault.what, fault.recorded, fault.expected) == ("held", 100, 200)
        await books.connection.execute("UPDATE limits SET held = 200")


def model_of(limits, calls):
    """Return the greedy model's verdicts: each call in turn takes room on all of its limits, or on
    none."""
    taken = Counter()
    verdicts = []
    for nanos, tokens, key, name, user in calls:
        need = {"usd": nanos, "tokens": tokens, "requests": 1, "concurrency": 1}
        # A limit for each end user has a counter per end user, and one for calls without an end
        # user.
        applying = {
            (place, user if end_user is EACH_USER else ""): (need[unit], ceiling)
            for place, (unit, _, ceiling, limit_key, model, end_user) in enumerate(limits)
            if limit_key in (None, key)
            and model in (None, name)
            and end_user in (None, EACH_USER, user)
        }
        fits = all(taken[at] + need <= ceiling for at, (need, ceiling) in applying.items())
        for at, (need, _) in applying.items() if fits else ():
            taken[at] += need
        verdicts.append(fits)
    return verdicts


some_limits = st.lists(
    st.tuples(
        st.sampled_from(UNITS),
        st.integers(0, 60),
        st.sampled_from([None, 0, 1]),
        st.sampled_from([None, *MODELS]),
        st.sampled_from([None, None, EACH_USER, *END_USERS]),
    ),
    max_size=6,
)
some_calls = st.lists(
    st.tuples(
        st.integers(0, 20),
        st.integers(0, 20),
        st.integers(0, 1),
        st.sampled_from(MODELS),
        st.sampled_from([None, *END_USERS]),
    ),
    min_size=1,
    max_size=40,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limits=some_limits, calls=some_calls, seed=st.integers())
async def test_verdicts_are_those_of_the_greedy_model(books, limits, calls, seed):
    """Random calls under overlapping limits get the greedy model's verdicts, and after random
    settlements all sums agree."""
    # Each example has its own organization.
    books.organization_id, books.keys = uuid7(), [uuid7(), uuid7()]
    await books.prepare()
    flat = [(*unit_and_period, *others) for unit_and_period, *others in limits]
    ids = [
        await books.limit(
            unit, period, ceiling, None if key is None else books.keys[key], model, end_user
        )
        for unit, period, ceiling, key, model, end_user in flat
    ]
    holds = [
        books.hold(nanos, tokens, books.keys[key], model, end_user)
        for nanos, tokens, key, model, end_user in calls
    ]

    admitted = await books.admitted(holds)

    assert admitted == model_of(flat, calls)
    chance = random.Random(seed)
    for hold, is_admitted in zip(holds, admitted, strict=True):
        if is_admitted:
            nanos = chance.randint(0, hold.bound_nanos)
            await books.settle(hold, nanos, chance.randint(0, hold.bound_tokens))
    await books.audit()
    for limit_id, (unit, *_) in zip(ids, flat, strict=True):
        assert (await books.state(limit_id))[1] == ("0.00" if unit == "usd" else 0)


async def test_end_users_beyond_the_maximum_share_a_counter(books):
    """Ten of thirty end users get counters of their own and the others share one, as do calls
    without an end user."""
    limit_id = await books.limit("requests", "day", 3, end_user=EACH_USER)
    books.ledger = Ledger(books.database, uuid7(), max_end_users=10)
    names = [f"user {n}" for n in range(30)] + [None]

    holds = [books.hold(end_user=name) for name in names for _ in range(5)]
    admitted = await books.admitted(holds)

    granted = Counter()
    for hold, is_admitted in zip(holds, admitted, strict=True):
        granted[hold.end_user] += is_admitted
    assert sum(granted.values()) == 10 * 3 + 3 + 3
    assert granted[None] == 3
    assert (await ledger.find_limit(books.database, limit_id)).end_users == 10
    counters = await books.connection.fetchval(
        "SELECT count(*) FROM limits WHERE template_id = $1", limit_id
    )
    assert counters == 12


async def test_concurrent_replicas_create_a_counter_once(books):
    """Three replicas that meet new end users concurrently create one counter each and admit exactly
    as many calls as fit."""
    limit_id = await books.limit("usd", "month", 4, end_user=EACH_USER)
    ledgers = [Ledger(books.database, uuid7()) for _ in range(3)]
    names = [f"user {n}" for n in range(20)]

    outcomes = await asyncio.gather(
        *(ledgers[n % 3].admit(books.hold(end_user=name)) for name in names for n in range(12)),
        return_exceptions=True,
    )

    assert sum(not isinstance(outcome, Exception) for outcome in outcomes) == 20 * 4
    assert (await ledger.find_limit(books.database, limit_id)).end_users == 20


async def test_a_change_of_the_template_binds_every_counter(books):
    """A changed ceiling of a limit for each end user applies to existing counters."""
    limit_id = await books.limit("usd", "month", 1, end_user=EACH_USER)
    assert await books.admitted([books.hold(end_user="alice"), books.hold(end_user="alice")]) == [
        True,
        False,
    ]
    await books.connection.execute("UPDATE limits SET ceiling = 2 WHERE id = $1", limit_id)

    with pytest.raises(RateLimited):
        await books.ledger.admit(books.hold(2, end_user="alice"))
    assert await books.admitted([books.hold(end_user="alice")]) == [True]
    await books.connection.execute("UPDATE limits SET deleted_at = now() WHERE id = $1", limit_id)
    assert await books.admitted([books.hold(9, end_user="alice")]) == [True]


async def test_idle_counters_are_swept_and_no_others(books):
    """The sweep deletes idle counters only, and a deleted one is created again at zero."""
    limit_id = await books.limit("usd", "day", 10, end_user=EACH_USER)
    rate_id = await books.limit("requests", "minute", 10, end_user=EACH_USER)
    used, idle, held = (books.hold(5, end_user=name) for name in ("used", "idle", "held"))
    for hold in (used, idle, held):
        await books.ledger.admit(hold)
    await books.settle(used, 5)
    await books.settle(idle, 5)
    for end_user in ("idle", "held"):
        await books.age_by_a_day(end_user)

    assert await ledger.sweep_end_users(books.database) == 1

    assert (await ledger.find_limit(books.database, limit_id)).end_users == 2
    assert (await ledger.find_limit(books.database, rate_id)).end_users == 3
    assert await books.admitted([books.hold(6, end_user="used")]) == [False]
    assert await books.admitted([books.hold(10, end_user="idle")]) == [True]
    await books.settle(held, 5)


@pytest.mark.parametrize("is_guarded", [True, False])
async def test_a_counter_swept_before_its_lock_is_created_again(books, is_guarded):
    """A counter that is swept between its lookup and its lock by an admission is created again;
    otherwise the call would not count."""
    await books.limit("requests", "day", 3, end_user=EACH_USER)
    first = books.hold(end_user="alice")
    await books.ledger.admit(first)
    await books.settle(first)
    await books.age_by_a_day("alice")
    await books.slow_down(
        "lock_limits_v2",
        before="SELECT array_agg(o.id), array_agg(o.found)",
        without="" if is_guarded else "NOT child_ids <@ coalesce(ids, '{}')",
        instead="false",
    )

    admitting = asyncio.create_task(books.admitted([books.hold(end_user="alice")]))
    await asyncio.sleep(0.1)
    assert await ledger.sweep_end_users(books.database) == 1

    assert await admitting == [True]
    counted = await books.connection.fetchval("SELECT cardinality(limit_ids) FROM holds")
    assert counted == is_guarded


async def test_a_counter_is_created_again_without_a_deadlock(books):
    """A batch that waits for the template of a swept counter has no limit that somebody else with
    the template needs."""
    template_id = await books.limit("requests", "day", 3, end_user=EACH_USER)
    limit_id = await books.limit("concurrency", None, 3)
    first = books.hold(end_user="alice")
    await books.ledger.admit(first)
    await books.settle(first)
    await books.age_by_a_day("alice")
    await books.slow_down("lock_limits_v2", before="SELECT array_agg(o.id), array_agg(o.found)")
    lock = "SELECT FROM limits WHERE id = $1 FOR NO KEY UPDATE"

    admitting = asyncio.create_task(books.admitted([books.hold(end_user="alice")]))
    await asyncio.sleep(0.1)
    assert await ledger.sweep_end_users(books.database) == 1
    async with books.connection.transaction():
        await books.connection.execute(lock, template_id)
        await books.wait_for("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted")
        await books.connection.execute("SET LOCAL lock_timeout = '500ms'")
        await books.connection.execute(lock, limit_id)

    assert await admitting == [True]


@pytest.mark.parametrize("is_guarded", [True, False])
async def test_a_counter_used_before_its_sweep_stays(books, is_guarded):
    """A counter that is used between its lookup and its deletion by the sweep stays, because the
    sweep checks its version."""
    limit_id = await books.limit("requests", "day", 3, end_user=EACH_USER)
    first = books.hold(end_user="alice")
    await books.ledger.admit(first)
    await books.settle(first)
    await books.age_by_a_day("alice")
    await books.slow_down(
        "sweep_children",
        before="PERFORM",
        without="" if is_guarded else " AND l.xmin::text = f.version",
    )

    sweeping = asyncio.create_task(ledger.sweep_end_users(books.database))
    await asyncio.sleep(0.1)
    second = books.hold(end_user="alice")
    await books.ledger.admit(second)
    await books.settle(second)
    await sweeping

    used = await books.connection.fetch("SELECT used FROM limits WHERE template_id = $1", limit_id)
    assert [row["used"] for row in used] == ([1] if is_guarded else [])


async def test_a_sweep_lets_nobody_exceed_a_limit(books):
    """While counters are swept continuously, each end user still gets exactly as many calls as
    fit."""
    await books.limit("concurrency", None, 3, end_user=EACH_USER)
    await books.limit("requests", "day", 5, end_user=EACH_USER)
    over = asyncio.Event()

    async def keep_sweeping():
        swept = 0
        while not over.is_set():
            swept += await ledger.sweep_end_users(books.database)
        return swept

    sweeping = asyncio.create_task(keep_sweeping())
    admitted = Counter()

    async def client(name):
        for _ in range(12):
            hold = books.hold(end_user=name)
            try:
                await books.ledger.admit(hold)
            except RateLimited:
                continue
            admitted[name] += 1
            await books.settle(hold)

    await asyncio.gather(*(client(f"user {n % 10}") for n in range(40)))
    over.set()

    assert await sweeping > 0
    assert set(admitted.values()) == {5}


async def test_each_call_of_a_batch_counts_on_its_own_limits(books):
    """Calls that differ only in organization, key, model or end user and come in any order in one
    batch each take their hold on the limits that bind them, and on no other."""
    other = Books(books.database, books.connection)
    await other.prepare()
    limits, callers = {}, []
    for owner in (books, other):
        bindings = (
            {},
            {"model": "m"},
            {"end_user": "alice"},
            {"end_user": "bob", "model": "other"},
            *({"key": key} for key in owner.keys),
        )
        for binding in bindings:
            limit_id = await owner.limit("concurrency", None, 100, **binding)
            limits[limit_id] = {"owner": owner, **binding}
        template_id = await owner.limit("concurrency", None, 100, end_user=EACH_USER)
        for end_user in (None, *END_USERS):
            counter_id = await books.connection.fetchval(
                "SELECT limit_child_id($1, $2)", template_id, digest(end_user) if end_user else b""
            )
            limits[counter_id] = {"owner": owner, "end_user": end_user}
        callers += [
            {"owner": owner, "key": key, "model": model, "end_user": end_user}
            for key in owner.keys
            for model in MODELS
            for end_user in (None, *END_USERS)
        ]
    calls = random.sample(callers * 3, 3 * len(callers))
    holds = [
        caller["owner"].hold(key=caller["key"], model=caller["model"], end_user=caller["end_user"])
        for caller in calls
    ]

    await books.connection.fetch(
        SETTLE_AND_ADMIT, None, msgspec.json.encode(holds).decode(), books.keys[0], LEASE_S, 100
    )

    rows = await books.connection.fetch("SELECT id, limit_ids FROM holds")
    counted = {row["id"]: set(row["limit_ids"]) for row in rows}
    for hold, caller in zip(holds, calls, strict=True):
        assert counted[hold.id] == {
            limit_id for limit_id, binding in limits.items() if binding.items() <= caller.items()
        }


async def test_a_key_admits_calls_of_its_own_organization_only(books):
    """A call with the key of another organization is refused, as is one with an unknown key, and
    the other calls of the batch are admitted."""
    other = Books(books.database, books.connection)
    await other.prepare()
    refused = [books.hold(key=other.keys[0]), books.hold(key=uuid7())]

    outcomes = await asyncio.gather(
        *map(books.ledger.admit, [*refused, books.hold(), other.hold()]), return_exceptions=True
    )

    assert [getattr(outcome, "code", "admitted") for outcome in outcomes] == [
        "invalid_api_key",
        "invalid_api_key",
        "admitted",
        "admitted",
    ]


async def test_the_secret_of_a_call_must_work(books):
    """The current secret of a key admits a call, and the previous one does until its end. A call of
    the release before, which states none, is admitted."""
    current, previous, older = books.keys[0].bytes * 2, b"p" * 32, b"o" * 32
    rotated = "UPDATE api_keys SET previous_digest = $2, previous_until = now() + $3 WHERE id = $1"

    async def outcomes():
        holds = [
            msgspec.structs.replace(books.hold(), key_digest=shown)
            for shown in (current, previous, older, None)
        ]
        found = await asyncio.gather(*map(books.ledger.admit, holds), return_exceptions=True)
        return [getattr(outcome, "code", "admitted") for outcome in found]

    refused = "expired_api_key"
    assert await outcomes() == ["admitted", refused, refused, "admitted"]
    await books.connection.execute(rotated, books.keys[0], previous, timedelta(minutes=1))
    assert await outcomes() == ["admitted", "admitted", refused, "admitted"]
    await books.connection.execute(rotated, books.keys[0], previous, timedelta(0))
    assert await outcomes() == ["admitted", refused, refused, "admitted"]


async def test_an_admission_opens_only_the_months_of_its_ids(books):
    """The search for entries of the calls prunes all other months before it starts, by a generic
    plan, so its cost does not grow with the months that are kept."""
    source = await books.connection.fetchval(
        "SELECT prosrc FROM pg_proc WHERE proname = 'write_holds'"
    )
    statement = re.search(r"INSERT INTO public\.holds.*?;", source, re.DOTALL)[0]
    variables = ("taken", "process_id", "decided_at", "lease_until", "first_id", "last_id")
    names, values = statement.split("SELECT", 1)
    for number, name in enumerate(variables, 1):
        values = re.sub(rf"(?<!\.)\b{name}\b", f"${number}", values)
    await books.connection.execute("SET plan_cache_mode = force_generic_plan")
    await books.connection.execute(
        "PREPARE writing (hold_row[], uuid, timestamptz, timestamptz, uuid, uuid) AS"
        f" {names} SELECT {values}"
    )
    plan = await books.connection.fetch(
        f"EXPLAIN (COSTS OFF) EXECUTE writing ('{{}}', NULL, NULL, NULL, '{uuid7()}', '{uuid7()}')"
    )

    lines = [row[0] for row in plan]
    months = await books.connection.fetchval(
        "SELECT count(*) FROM pg_inherits WHERE inhparent = 'ledger_entries'::regclass"
    )
    assert any(f"Subplans Removed: {months - 1}" in line for line in lines)
    assert sum("on ledger_entries_" in line for line in lines) == 1


async def test_a_call_is_cut_down_to_what_is_left(books):
    """A call between its maximum and minimum output takes what the tightest limit has left; below
    the minimum it is refused, and a call that may not be cut is refused at once."""
    await books.limit("usd", "month", 100)
    await books.limit("tokens", "day", 55)
    least = {"least_nanos": 20, "least_tokens": 5}

    first = await books.ledger.admit(books.hold(70, 20, **least))
    second = await books.ledger.admit(books.hold(70, 40, **least))
    with pytest.raises(RateLimited) as refused:
        await books.ledger.admit(books.hold(70, 20, **least))

    assert (first.bound_nanos, first.bound_tokens) == (70, 20)
    assert (second.bound_nanos, second.bound_tokens) == (30, 35)
    assert (refused.value.limit["unit"], refused.value.limit["needed"]) == ("tokens", 5)
    held = await books.connection.fetch("SELECT bound_nanos, bound_tokens FROM holds ORDER BY id")
    assert [tuple(row) for row in held] == [(70, 20), (30, 35)]


async def test_an_unknown_price_is_never_cut_down(books):
    """A call of unknown price is never cut down, whether or not money is left."""
    await books.limit("usd", "month", 10)
    for used in (0, 10, 5):
        with pytest.raises(LimitExceeded) as refused:
            await books.ledger.admit(books.hold(None, 20, least_tokens=5))
        assert refused.value.code == "price_unknown"
        if used == 0:
            spent = books.hold(10)
            await books.ledger.admit(spent)
            await books.settle(spent, 10 + used)


async def test_an_alert_is_announced_once(books):
    """An alert is announced once for each threshold, limit and window, whichever process announces
    it."""
    limit_id = await books.limit("usd", "day", 100)
    replicas = [books.database] * 3

    async def announced():
        found = await asyncio.gather(*map(ledger.announce, replicas))
        return sorted(alert.percent for alerts in found for alert in alerts)

    async def spend(nanos):
        hold = books.hold(nanos)
        await books.ledger.admit(hold)
        await books.settle(hold, nanos)

    await spend(49)
    assert not books.ledger.alerts_are_due.is_set()
    await spend(1)
    assert books.ledger.alerts_are_due.is_set()
    assert await announced() == [50]
    assert await announced() == []
    await spend(50)
    assert await announced() == [80, 100]
    await books.age_by_a_day()
    await spend(50)
    assert await announced() == [50]

    events = await books.connection.fetch(
        "SELECT target, detail ->> 'percent' AS percent, detail ->> 'used' AS used"
        " FROM audit_events WHERE action = 'limit.alert' ORDER BY sequence"
    )
    assert [tuple(event) for event in events] == [
        (str(limit_id), "50", "0.00000005"),
        (str(limit_id), "80", "0.0000001"),
        (str(limit_id), "100", "0.0000001"),
        (str(limit_id), "50", "0.00000005"),
    ]


async def test_alerts_of_each_end_user_follow_their_template(books):
    """Existing counters of end users heed thresholds that are set on their template later."""
    template_id = await books.limit("usd", "day", 100, end_user=EACH_USER)
    change = "UPDATE limits SET alert_percents = $2 WHERE id = $1"
    await books.connection.execute(change, template_id, [])
    hold = books.hold(60, end_user="alice")
    await books.ledger.admit(hold)
    await books.settle(hold, 60)
    assert await ledger.announce(books.database) == []

    await books.connection.execute(change, template_id, [60, 80])

    assert [alert.percent for alert in await ledger.announce(books.database)] == [60]
    assert await ledger.announce(books.database) == []


async def test_a_refusal_is_justified_by_its_numbers(books):
    """A refusal names its limit with used + held + needed > ceiling, and is final only if used +
    needed alone exceeds it."""
    limit_id = await books.limit("usd", "month", 100)
    first, second = books.hold(60), books.hold(30)
    await books.ledger.admit(first)
    await books.ledger.admit(second)
    await books.settle(first, 50)

    with pytest.raises(RateLimited) as held:
        await books.ledger.admit(books.hold(30))
    with pytest.raises(LimitExceeded) as exceeded:
        await books.ledger.admit(books.hold(51))

    assert (held.value.code, held.value.retry_after_s) == ("limit_held", 1)
    assert held.value.limit["id"] == str(limit_id)
    numbers = [held.value.limit[name] for name in ("used", "held", "needed", "ceiling")]
    assert numbers == ["0.00000005", "0.00000003", "0.00000003", "0.0000001"]
    assert held.value.limit["resets_at"].day == 1
    assert exceeded.value.code == "limit_exceeded"


async def test_a_rate_slides(books):
    """A sliding rate states when it has room and what is left."""
    await books.limit("requests", "minute", 3)

    rates = [await books.ledger.admit(books.hold()) for _ in range(3)]
    with pytest.raises(RateLimited) as refused:
        await books.ledger.admit(books.hold())

    assert [rate.rates.requests.left for rate in rates] == [2, 1, 0]
    assert refused.value.code == "rate_limited"
    assert 55 <= refused.value.retry_after_s <= 62
    # A minute and a second later the call no longer counts.
    await books.connection.execute(
        "UPDATE limits SET bucket_at = bucket_at - interval '61 s',"
        " buckets = (SELECT array_agg(buckets[(i + 60) % 61 + 1] ORDER BY i)"
        "            FROM generate_series(1, 61) i);"
        "UPDATE holds SET limit_windows = ARRAY[limit_windows[1] - interval '61 s']"
    )
    await books.ledger.admit(books.hold())


async def test_the_books_decide_whether_to_wait(books):
    """A call waits where a rate of a minute has room within a second, whatever the Retry-After of
    its refusal states."""
    await books.limit("requests", "minute", 1)
    # Buckets are seconds of the database's clock.
    while (await books.database.now()).microsecond > 100_000:
        await asyncio.sleep(0.01)
    await books.ledger.admit(books.hold())

    with pytest.raises(RateLimited) as early:
        await books.ledger.admit(books.hold())
    await books.connection.execute(
        "UPDATE limits SET bucket_at = bucket_at - interval '60 s',"
        " buckets = (SELECT array_agg(buckets[(i + 59) % 61 + 1] ORDER BY i)"
        "            FROM generate_series(1, 61) i);"
        "UPDATE holds SET limit_windows = ARRAY[limit_windows[1] - interval '60 s']"
    )
    with pytest.raises(RateLimited) as late:
        await books.ledger.admit(books.hold())
    early.value.retry_after_s, late.value.retry_after_s = 1, 60

    assert not await books.ledger.wait_for_room(early.value)
    assert await books.ledger.wait_for_room(late.value)


async def test_unused_tokens_are_returned(books):
    """A token rate counts the bound at admission and the actual tokens after settlement."""
    limit_id = await books.limit("tokens", "hour", 100)
    hold = books.hold(tokens=90)
    await books.ledger.admit(hold)
    with pytest.raises(RateLimited):
        await books.ledger.admit(books.hold(tokens=20))

    await books.settle(hold, tokens=5)

    assert await books.state(limit_id) == (5, 0)
    await books.ledger.admit(books.hold(tokens=95))


async def test_unused_tokens_that_slid_out_are_not_returned(books):
    """Tokens that a call did not use make no room once its bound has slid out of the rate."""
    limit_id = await books.limit("tokens", "minute", 100)
    early, late = books.hold(tokens=50), books.hold(tokens=40)
    await books.ledger.admit(early)
    await books.connection.execute(
        "UPDATE limits SET bucket_at = bucket_at - interval '61 s';"
        "UPDATE holds SET limit_windows = ARRAY[limit_windows[1] - interval '61 s']"
    )
    await books.ledger.admit(late)

    await books.settle(early, tokens=10)

    assert await books.state(limit_id) == (40, 0)
    await books.settle(late, tokens=40)


async def test_a_call_that_never_fits_is_refused_for_good(books):
    """A call that needs more than the ceiling gets a refusal that does not ask it to wait."""
    await books.limit("tokens", "minute", 10)

    with pytest.raises(RateLimited) as refused:
        await books.ledger.admit(books.hold(tokens=11))

    assert refused.value.retry_after_s is None


async def test_without_a_price_no_money_limit_is_passed(books):
    """A call without a known bound is refused by limits of money only."""
    await books.limit("usd", "day", 1000, key=books.keys[0])

    with pytest.raises(LimitExceeded) as refused:
        await books.ledger.admit(books.hold(nanos=None))
    await books.ledger.admit(books.hold(nanos=None, key=books.keys[1]))

    assert refused.value.code == "price_unknown"


async def test_windows_roll(books):
    """A new window starts with nothing used and keeps what is held."""
    limit_id = await books.limit("usd", "day", 100)
    first, second = books.hold(40), books.hold(40)
    await books.ledger.admit(first)
    await books.ledger.admit(second)
    await books.settle(first, 40)
    # Move everything so far to yesterday.
    await books.connection.execute(
        "SET session_replication_role = replica;"
        "UPDATE limits SET window_start = window_start - interval '1 d';"
        "UPDATE ledger_entries SET limit_windows = ARRAY[limit_windows[1] - interval '1 d'];"
        "RESET session_replication_role"
    )

    assert await books.state(limit_id) == ("0.00", "0.00000004")
    await books.ledger.admit(books.hold(60))
    await books.settle(second, 30)

    assert await books.state(limit_id) == ("0.00000003", "0.00000006")


async def test_what_is_carried_ends_with_its_window(books):
    """What a limit carries for a dropped month is not part of the next window."""
    await books.limit("usd", "day", 100)
    await books.connection.execute("UPDATE limits SET window_start = now(), used = 5, carried = 5")
    await books.age_by_a_day()
    hold = books.hold(10)

    await books.ledger.admit(hold)
    await books.settle(hold, 10)

    assert await books.connection.fetchval("SELECT carried FROM limits") == 0
    await books.audit()


async def test_a_clock_that_goes_back_makes_no_room(books):
    """When the database's clock goes back to the window before, the newer one stays in force."""
    limit_id = await books.limit("usd", "day", 10)
    hold = books.hold(10)
    await books.ledger.admit(hold)
    await books.settle(hold, 10)
    await books.connection.execute(
        "SET session_replication_role = replica;"
        "UPDATE ledger_entries SET limit_windows = ARRAY[limit_windows[1] + interval '1 day'];"
        "UPDATE limits SET window_start = window_start + interval '1 day'"
    )

    assert await books.admitted([books.hold(10)]) == [False]
    assert await books.state(limit_id) == ("0.00000001", "0.00")


@pytest.mark.parametrize("end_user", [None, EACH_USER])
async def test_a_raise_expires(books, end_user):
    """A raise is the ceiling until its end, and that of a template is the ceiling of each end
    user."""
    limit_id = await books.limit("concurrency", None, 1, end_user=end_user)
    raising = "UPDATE limits SET raised_to = 3, raised_until = $2 WHERE id = $1"
    now = datetime.now(UTC)

    await books.connection.execute(raising, limit_id, now + timedelta(minutes=1))
    assert sum(await books.admitted([books.hold() for _ in range(5)])) == 3
    await books.connection.execute(raising, limit_id, now - timedelta(minutes=1))
    assert sum(await books.admitted([books.hold()])) == 0


async def test_a_full_queue_refuses(books, monkeypatch):
    """Calls beyond the bound of the queue are refused with a 503, and none waits forever."""
    monkeypatch.setattr(ledger.calls, "MAX_ADMITTING", 10)
    books.ledger = Ledger(books.database, uuid7())

    outcomes = await asyncio.gather(
        *(books.ledger.admit(books.hold()) for _ in range(50)), return_exceptions=True
    )

    refused = [outcome for outcome in outcomes if isinstance(outcome, Unavailable)]
    assert len(refused) == 40
    assert {error.retry_after_s for error in refused} == {1}


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        ("UPDATE limits SET used = used + 1 WHERE unit = 'usd'", "used"),
        ("UPDATE limits SET held = held + 1 WHERE unit = 'usd'", "held"),
        ("UPDATE limits SET held = held + 1 WHERE unit = 'concurrency'", "held"),
        ("UPDATE limits SET buckets[1] = buckets[1] + 1 WHERE unit = 'requests'", "used"),
        ("UPDATE limits SET buckets[9] = buckets[9] - 1 WHERE unit = 'tokens'", "used"),
        ("DELETE FROM holds", "held"),
        (
            "INSERT INTO holds (organization_id, id, api_key_id, request_id, endpoint, model,"
            " is_stream, process_id, lease_until) SELECT organization_id, id, api_key_id, 'r', 'e',"
            " 'm', false, id, now() FROM ledger_entries",
            "hold of a settled call",
        ),
    ],
)
async def test_the_audit_finds_manipulated_sums(books, harm, what):
    """The audit names each sum that was changed behind the ledger's back."""
    for unit, period in UNITS:
        await books.limit(unit, period, 1000)
    settled, open_one = books.hold(5, 7), books.hold(3, 4)
    await books.admitted([settled, open_one])
    await books.settle(settled, 2, 6)
    await books.audit()
    transaction = books.connection.transaction()
    await transaction.start()

    await books.connection.execute(harm)
    rows = await books.connection.fetch(ledger.proofs.FIND_FAULTS, books.organization_id)
    await transaction.rollback()

    assert what in {row["what"] for row in rows}
    await books.settle(open_one)


async def test_the_audit_proves_corrections(books):
    """The audit accepts one correction per existing call, and reports any other."""
    hold = books.hold(5)
    await books.admitted([hold])
    await books.settle(hold, 5)
    correct = (
        "INSERT INTO ledger_entries (organization_id, id, kind, amends_id, cost_nanos, cost_source)"
        " VALUES ($1, $2, 'correction', $3, 1, 'manual')"
    )
    transaction = books.connection.transaction()
    await transaction.start()
    for amended in (hold.id, hold.id, uuid7()):
        await books.connection.execute(correct, books.organization_id, uuid7(), amended)
    rows = await books.connection.fetch(ledger.proofs.FIND_FAULTS, books.organization_id)
    await transaction.rollback()

    assert sorted(row["what"] for row in rows) == [
        "duplicate corrections",
        "orphaned correction",
    ]
