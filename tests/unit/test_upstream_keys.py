"""The choice of an upstream key, cooldowns, and retries."""

import asyncio
import contextlib
import uuid

import pytest

from service import crypto
from service.errors import (
    UpstreamBusy,
    UpstreamCut,
    UpstreamError,
    UpstreamExhausted,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from service.upstream import (
    Source,
    UpstreamKey,
    UpstreamKeys,
    UpstreamKeyState,
    cooldowns,
    keys,
    pause_s,
)
from service.upstream import refusals as refusals_of_venice
from service.upstream.retries import MAX_BUDGETS, MAX_RETRIES, RetryBudgets

TENANT = uuid.UUID(int=7)
CALLER = Source(TENANT, uuid.UUID(int=8))


def refusal(status, headers=None, body=b'{"error": "So it is."}'):
    """Return an error response of Venice, JSON unless another type is given."""
    headers = {"Content-Type": "application/json", **(headers or {})}
    return refusals_of_venice.refusal(status, headers, body)


def somebody(organization_id=None):
    """Return a new caller, in a new organization unless one is given."""
    return Source(organization_id or uuid.uuid4(), uuid.uuid4())


def key(name, organization_id=None):
    return UpstreamKey(
        id=uuid.uuid4(), name=name, secret=f"secret of {name}", organization_id=organization_id
    )


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(keys, "time", clock)
    monkeypatch.setattr(cooldowns, "time", clock)
    return clock


def test_calls_are_spread_evenly():
    """The key with the fewest calls in flight takes the next call."""
    pool = UpstreamKeys([key("a"), key("b"), key("c")])
    for _ in range(30):
        pool.in_flight[pool.choose(CALLER, "m").id] += 1

    assert sorted(pool.in_flight.values()) == [10, 10, 10]


def test_an_organizations_own_key():
    """An organization's own key serves no other calls, and its organization uses no other keys."""
    shared, own = key("shared"), key("own", TENANT)
    pool = UpstreamKeys([shared, own])

    assert {pool.choose(CALLER, "m").name for _ in range(20)} == {"own"}
    assert {pool.choose(somebody(), "m").name for _ in range(20)} == {"shared"}
    pool.put_out_of_service(own, "status 402")
    with pytest.raises(UpstreamExhausted):
        pool.choose(CALLER, "m")


@pytest.mark.parametrize("status", [401, 402])
async def test_a_spent_key_cools_down_until_a_probe_succeeds(monkeypatch, status):
    """A spent key is not used for any model until a probe succeeds, and the other keys are."""
    monkeypatch.setattr(keys, "PROBE_EVERY_S", 0.001)
    spent, well = key("spent"), key("well")
    pool = UpstreamKeys([spent, well])
    pool.put_out_of_service(spent, f"status {status}")
    assert {pool.choose(CALLER, "other").name for _ in range(20)} == {"well"}
    assert pool.out_of_service() == {"spent": f"status {status}"}

    answers = iter(
        [
            UpstreamExhausted("no"),
            UpstreamKeyState(access_permitted=False),
            UpstreamKeyState(access_permitted=True),
        ]
    )
    probed = []

    async def probe(asked):
        probed.append(asked.name)
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    probing = asyncio.create_task(pool.probe_out_of_service_keys(probe))
    async with asyncio.timeout(5):
        while pool.out_of_service():
            await asyncio.sleep(0.001)
    probing.cancel()
    assert probed == ["spent"] * 3
    assert {pool.choose(CALLER, "m").name for _ in range(50)} == {"spent", "well"}


def test_an_older_success_does_not_revive_a_spent_key():
    """A success of a call that started before the key was refused does not end the cooldown."""
    spent, well = key("spent"), key("well")
    pool = UpstreamKeys([spent, well])
    pool.put_out_of_service(spent, "status 402")
    pool.succeeded(spent, "m", CALLER)

    assert pool.out_of_service() == {"spent": "status 402"}


def test_a_key_that_may_not_use_a_model(clock):
    """A key that Venice refuses for a model cools down for a while for that model and caller only,
    because the reason may lie in the caller's request."""
    one = key("one")
    pool = UpstreamKeys([one])
    body = b'{"error": "No.", "code": "MODEL_PRIVACY_RESTRICTED"}'
    pool.failed(one, "m", CALLER, refusal(403, {}, body))

    with pytest.raises(UpstreamBusy) as caught:
        pool.choose(CALLER, "m")
    assert caught.value.retry_after_s == cooldowns.FIRST_COOLDOWN_S
    assert pool.choose(CALLER, "other") is one
    assert pool.choose(somebody(TENANT), "m") is one
    clock.now += cooldowns.FIRST_COOLDOWN_S
    assert pool.choose(CALLER, "m") is one


def test_a_rate_that_is_used_up(clock, monkeypatch):
    """A key whose rate is used up cools down until Venice's reset time in Unix milliseconds."""
    one = key("one")
    pool = UpstreamKeys([one])
    monkeypatch.setattr("service.upstream.refusals.time.time", lambda: 2000.0)
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "2012500"}
    pool.failed(one, "m", CALLER, refusal(429, headers))

    with pytest.raises(UpstreamBusy) as caught:
        pool.choose(CALLER, "m")
    assert caught.value.retry_after_s == 13
    clock.now += 12.5
    assert pool.choose(CALLER, "m") is one


def test_overload_causes_no_cooldown():
    """An overload names a time for the retry and does not affect the key."""
    one = key("one")
    pool = UpstreamKeys([one])
    for _ in range(20):
        pool.failed(one, "m", CALLER, refusal(429, {"Retry-After": "30"}))
        pool.failed(one, "m", CALLER, refusal(503))
        pool.failed(one, "m", CALLER, UpstreamUnreachable("no"))
        pool.failed(one, "m", CALLER, refusal(400))

    assert pool.choose(CALLER, "m") is one


@pytest.mark.parametrize(
    "error", [UpstreamError("500"), UpstreamCut("cut"), UpstreamTimeout("late")]
)
def test_the_circuit_breaker(clock, error):
    """After five consecutive failures the key cools down for the model, then one trial call
    decides."""
    one = key("one")
    pool = UpstreamKeys([one])
    for _ in range(cooldowns.FAILURES_TO_OPEN - 1):
        pool.failed(one, "m", CALLER, error)
    pool.succeeded(one, "m", CALLER)
    for _ in range(cooldowns.FAILURES_TO_OPEN):
        assert pool.choose(CALLER, "m") is one
        pool.failed(one, "m", CALLER, error)
    with pytest.raises(UpstreamBusy):
        pool.choose(CALLER, "m")
    assert pool.choose(CALLER, "other") is one

    clock.now += cooldowns.FIRST_COOLDOWN_S
    assert pool.choose(CALLER, "m") is one
    with pytest.raises(UpstreamBusy):
        pool.choose(CALLER, "m")
    pool.failed(one, "m", CALLER, error)
    clock.now += cooldowns.FIRST_COOLDOWN_S
    with pytest.raises(UpstreamBusy):
        pool.choose(CALLER, "m")
    clock.now += cooldowns.FIRST_COOLDOWN_S
    assert pool.choose(CALLER, "m") is one
    pool.succeeded(one, "m", CALLER)
    assert [pool.choose(CALLER, "m") for _ in range(3)] == [one] * 3


def test_a_callers_mistake_ends_a_trial(clock):
    """A trial call that fails by its caller's mistake shows that the model works."""
    one = key("one")
    pool = UpstreamKeys([one])
    for _ in range(cooldowns.FAILURES_TO_OPEN):
        pool.failed(one, "m", CALLER, UpstreamCut("cut"))
    clock.now += cooldowns.FIRST_COOLDOWN_S
    assert pool.choose(CALLER, "m") is one
    pool.failed(one, "m", CALLER, refusal(400))

    assert [pool.choose(CALLER, "m") for _ in range(3)] == [one] * 3


POISON = (
    UpstreamCut("cut"),
    UpstreamTimeout("late"),
    refusal(500),
    refusal(502),
    refusal(504),
    refusal(401),
    refusal(402),
    refusal(403),
    refusal(429),
    refusal(429, {"x-ratelimit-remaining": "0", "x-ratelimit-resets": "9999999999999"}),
    *(refusal(status, {"Content-Type": "text/html"}, b"<html>") for status in range(400, 600)),
    *(refusal(status, {}, b"<html>") for status in (401, 402, 403, 429, 500)),
    *(refusal(status, {}, b'{"title": "Blocked"}') for status in (401, 402, 403, 429, 500)),
    *(refusal(status, {"Content-Type": ""}) for status in (401, 402, 403, 429, 500)),
)


@pytest.mark.parametrize("is_same_organization", [False, True])
@pytest.mark.parametrize("error", POISON, ids=lambda error: f"{error.upstream_status}-{error.code}")
def test_one_callers_failures_bind_no_other(clock, error, is_same_organization):
    """One caller's failures, of any kind and number, affect no other caller, and do not keep a
    recovered model down."""
    one = key("one")
    pool = UpstreamKeys([one])
    victim = somebody(TENANT if is_same_organization else None)
    for _ in range(100):
        clock.now += 1
        with contextlib.suppress(UpstreamBusy):
            pool.choose(CALLER, "m")
        pool.failed(one, "m", CALLER, error)
        assert pool.choose(victim, "m") is one


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 429, 500, 502, 503, 520])
def test_an_error_that_is_not_venices_own_binds_nobody(status):
    """An error that is not Venice's own does not even affect its caller, whose next prompt may
    pass."""
    one = key("one")
    pool = UpstreamKeys([one])
    for _ in range(100):
        pool.failed(one, "m", CALLER, refusal(status, {"Content-Type": "text/html"}, b"<html>"))

    assert pool.choose(CALLER, "m") is one


@pytest.mark.parametrize("callers", [2, 5])
@pytest.mark.parametrize("are_organizations", [False, True])
def test_a_failure_of_several_callers(callers, are_organizations):
    """A failure that several callers have affects their organization, or everybody if they are of
    several organizations."""
    one = key("one")
    pool = UpstreamKeys([one])
    sources = [somebody(None if are_organizations else TENANT) for _ in range(callers)]
    for number in range(6):
        pool.failed(one, "m", sources[number % callers], UpstreamCut("cut"))

    with pytest.raises(UpstreamBusy):
        pool.choose(somebody(TENANT), "m")
    if are_organizations:
        with pytest.raises(UpstreamBusy):
            pool.choose(somebody(), "m")
    else:
        assert pool.choose(somebody(), "m") is one


def test_failures_hours_apart_are_no_outage(clock):
    """Failures hours apart cause no cooldown, because each is forgotten before the next."""
    one = key("one")
    pool = UpstreamKeys([one])
    for _ in range(10):
        clock.now += cooldowns.EVIDENCE_S + 1
        pool.failed(one, "m", somebody(), UpstreamCut("cut"))

    assert pool.choose(somebody(), "m") is one


def test_a_failing_caller_takes_no_other_callers_trial(clock):
    """After an outage each caller has a trial of its own."""
    one = key("one")
    pool = UpstreamKeys([one])
    for _ in range(cooldowns.FAILURES_TO_OPEN):
        pool.failed(one, "m", somebody(), UpstreamCut("cut"))
    clock.now += cooldowns.FIRST_COOLDOWN_S

    assert pool.choose(CALLER, "m") is one
    victim = somebody(TENANT)
    assert pool.choose(victim, "m") is one
    pool.failed(one, "m", CALLER, UpstreamCut("cut"))
    assert pool.choose(somebody(TENANT), "m") is one
    pool.failed(one, "m", somebody(), UpstreamCut("cut"))
    with pytest.raises(UpstreamBusy):
        pool.choose(somebody(), "m")


@pytest.mark.parametrize("unit", ["requests", "tokens"])
def test_a_response_that_used_up_a_rate(clock, monkeypatch, unit):
    """A key cools down for the model until Venice's reset time, although responses of earlier calls
    arrive; other keys and models are not affected."""
    monkeypatch.setattr("service.upstream.refusals.time.time", lambda: 2000.0)
    one, other = key("one"), key("other")
    pool = UpstreamKeys([one, other])
    headers = {f"x-ratelimit-remaining-{unit}": "0", f"x-ratelimit-reset-{unit}": "2012500"}
    pool.succeeded(one, "m", CALLER, headers)
    pool.succeeded(one, "m", CALLER, {f"x-ratelimit-remaining-{unit}": "3"})

    assert {pool.choose(CALLER, "m").name for _ in range(20)} == {"other"}
    assert {pool.choose(CALLER, "n").name for _ in range(50)} == {"one", "other"}
    (rest,) = pool.cooldowns()[one.id]
    assert (rest.model, rest.reason, rest.seconds_left) == ("m", "rate used up", 12.5)
    clock.now += 12.5
    assert {pool.choose(CALLER, "m").name for _ in range(50)} == {"one", "other"}
    assert pool.cooldowns() == {}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "9999999999999"},
        {"x-ratelimit-remaining-requests": "0"},
        {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "soon"},
        # These headers of failures count one user, not the key.
        {"x-ratelimit-remaining": "0", "x-ratelimit-resets": "9999999999999"},
    ],
)
def test_a_response_without_a_used_up_rate(headers):
    """A key stays in use unless a response states that a rate is used up and when it resets."""
    one = key("one")
    pool = UpstreamKeys([one])
    pool.succeeded(one, "m", CALLER, headers)

    assert pool.choose(CALLER, "m") is one


def test_a_rate_that_resets_tomorrow(clock):
    """A rate that resets in a day is tried again within a minute, because it may have been raised
    by then."""
    one = key("one")
    pool = UpstreamKeys([one])
    far = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "9" * 13}
    pool.succeeded(one, "m", CALLER, far)

    clock.now += keys.MAX_RATE_COOLDOWN_S - 1
    with pytest.raises(UpstreamBusy):
        pool.choose(CALLER, "m")
    clock.now += 1
    assert pool.choose(CALLER, "m") is one


def test_a_key_with_little_balance_is_the_last_resort():
    """A key with next to no balance is used last, however busy the others are; one of unknown
    balance is treated as good."""
    poor, rich, unknown = key("poor"), key("rich"), key("unknown")
    pool = UpstreamKeys([poor, rich, unknown])
    pool.note_state(
        poor, UpstreamKeyState(access_permitted=True, balances={"USD": 0.05, "DIEM": 0.04})
    )
    pool.note_state(
        rich, UpstreamKeyState(access_permitted=True, balances={"USD": 0.05, "DIEM": 0.06})
    )
    pool.note_state(unknown, UpstreamKeyState(access_permitted=True))
    for one in (rich, unknown):
        pool.in_flight[one.id] = 100
    assert {pool.choose(CALLER, "m").name for _ in range(50)} == {"rich", "unknown"}

    for one in (rich, unknown):
        pool.put_out_of_service(one, "status 402")
    assert pool.choose(CALLER, "m") is poor
    pool.note_state(poor, UpstreamKeyState(access_permitted=True, balances={"USD": 5.0}))
    pool.note_state(rich, UpstreamKeyState(access_permitted=True))
    assert {pool.choose(CALLER, "m").name for _ in range(50)} == {"poor"}


def test_a_fresh_key_goes_before_a_full_one():
    """A key that has not been tried for this call goes before one with more balance that just
    failed it."""
    poor, rich = key("poor"), key("rich")
    pool = UpstreamKeys([poor, rich])
    pool.note_state(poor, UpstreamKeyState(access_permitted=True, balances={"USD": 0.0}))

    assert pool.choose(CALLER, "m") is rich
    assert pool.choose(CALLER, "m", {rich.id}) is poor


def test_no_trial_after_a_rate_reset(clock):
    """After the reset time of a rate all calls may use the key at once."""
    one = key("one")
    pool = UpstreamKeys([one])
    pool.failed(one, "m", CALLER, refusal(429, {"x-ratelimit-remaining-requests": "0"}))
    clock.now += 5

    assert [pool.choose(CALLER, "m") for _ in range(3)] == [one] * 3


def test_cooldowns_are_bounded_in_number():
    """The number of cooldowns is bounded, because callers may name any model."""
    one = key("one")
    pool = UpstreamKeys([one])
    for number in range(cooldowns.MAX_COOLDOWNS + 10):
        pool.failed(one, f"m{number}", CALLER, UpstreamCut("cut"))

    assert len(pool._cooldowns.by_scope) <= cooldowns.MAX_COOLDOWNS


def test_a_secret_is_not_shown():
    """An upstream key is not shown, even in a traceback."""
    assert "secret of" not in repr(key("a"))


BUSY, NAMED = refusal(503), refusal(429, {"Retry-After": "30"})


@pytest.mark.parametrize(
    ("error", "is_inference", "has_key", "is_repeated"),
    [
        (UpstreamUnreachable("x"), False, False, True),
        (refusal(401), False, True, True),
        (refusal(402), True, False, False),
        (BUSY, True, False, True),
        (BUSY, True, True, True),
        (BUSY, False, True, False),
        (NAMED, True, False, True),
        (refusal(500), True, True, False),
        (refusal(502), True, True, False),
        (refusal(504), True, True, False),
        (UpstreamCut("x"), True, True, False),
        (UpstreamTimeout("x"), True, True, False),
        (UpstreamRejected("x"), True, True, False),
    ],
)
def test_retried_errors(error, is_inference, has_key, is_repeated):
    """Only errors that were certainly not charged are retried."""
    pause = pause_s(error, 1, is_inference=is_inference, has_key=has_key, has_fresh_key=has_key)

    assert (pause is not None) is is_repeated


def pause(error, attempt=1, *, has_fresh_key=False):
    """Return the pause for a text call with a key available."""
    return pause_s(error, attempt, is_inference=True, has_key=True, has_fresh_key=has_fresh_key)


def test_pauses():
    """Pauses grow, are jittered, and heed the time that Venice names."""
    pauses = [
        [
            pause_s(BUSY, attempt, is_inference=True, has_key=True, has_fresh_key=False)
            for _ in range(50)
        ]
        for attempt in range(1, 12)
    ]

    assert max(pauses[0]) <= 0.2
    assert 1 < max(pauses[-1]) <= 2.0
    assert all(len(set(some)) > 10 for some in pauses)
    assert pause(NAMED) >= 30
    assert pause(NAMED, has_fresh_key=True) == 0


def test_an_outage_is_not_amplified():
    """After a hundred retries there are no more until a call succeeds."""
    budgets, caller = RetryBudgets(), uuid.uuid4()

    assert sum(budgets.spend(caller) for _ in range(1000)) == MAX_RETRIES
    budgets.earn(caller)
    assert sum(budgets.spend(caller) for _ in range(10)) == 2


def test_calls_earn_no_more_than_the_whole_budget():
    """A caller earns its retries back, never more than it had, and is not remembered then."""
    budgets, caller = RetryBudgets(), uuid.uuid4()
    assert all(budgets.spend(caller) for _ in range(3))
    for _ in range(4):
        budgets.earn(caller)

    assert not budgets.left
    assert sum(budgets.spend(caller) for _ in range(1000)) == MAX_RETRIES


def test_each_caller_has_a_budget_of_its_own():
    """A caller whose calls always fail uses up no other caller's retry budget, and the oldest
    budgets are forgotten."""
    budgets = RetryBudgets()
    poisoner, victim = uuid.uuid4(), uuid.uuid4()
    while budgets.spend(poisoner):
        pass

    assert budgets.spend(victim)
    for _ in range(MAX_BUDGETS):
        budgets.spend(uuid.uuid4())
    assert len(budgets.left) == MAX_BUDGETS


def test_sealed_keys_open_for_their_owner_alone():
    """A sealed key opens for its owner with any master key of the ring, and its ciphertext differs
    each time."""
    ring = crypto.Keyring(["new-master-key", "old-master-key"])
    sealed = crypto.Keyring(["old-master-key"]).seal(b"owner", b"secret")

    assert ring.unseal(b"owner", sealed) == b"secret"
    assert sealed != crypto.Keyring(["old-master-key"]).seal(b"owner", b"secret")
    with pytest.raises(crypto.UnknownMasterKey):
        crypto.Keyring(["new-master-key"]).unseal(b"owner", sealed)
    with pytest.raises(crypto.UnknownMasterKey):
        ring.unseal(b"other", sealed)
