"""Which key takes a call, which ones rest, and what is repeated."""

import asyncio
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
from service.upstream import KeyState, UpstreamKey, UpstreamKeys, keys, pause_s
from service.upstream.refusals import refusal
from service.upstream.retries import MOST_LEFT, RetryBudget

TENANT = uuid.UUID(int=7)


def key(name, organization_id=None):
    return UpstreamKey(
        id=uuid.uuid4(), name=name, secret=f"secret of {name}", organization_id=organization_id
    )


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(keys, "time", clock)
    return clock


def test_the_one_with_the_fewest_calls():
    """Calls spread evenly."""
    pool = UpstreamKeys([key("a"), key("b"), key("c")])
    for _ in range(30):
        pool.in_flight[pool.choose(TENANT, "m").id] += 1

    assert sorted(pool.in_flight.values()) == [10, 10, 10]


def test_an_organizations_own():
    """Has no other calls, and its organization no other keys."""
    shared, own = key("shared"), key("own", TENANT)
    pool = UpstreamKeys([shared, own])

    assert {pool.choose(TENANT, "m").name for _ in range(20)} == {"own"}
    assert {pool.choose(uuid.uuid4(), "m").name for _ in range(20)} == {"shared"}
    pool.failed(own, "m", refusal(402, {}, b""))
    with pytest.raises(UpstreamExhausted):
        pool.choose(TENANT, "m")


@pytest.mark.parametrize("status", [401, 402])
async def test_one_that_is_spent_rests_until_a_probe_finds_it_well(monkeypatch, status):
    """For every model; the others go on."""
    monkeypatch.setattr(keys, "PROBE_EVERY_S", 0.001)
    spent, well = key("spent"), key("well")
    pool = UpstreamKeys([spent, well])
    pool.failed(spent, "m", refusal(status, {}, b""))
    assert {pool.choose(TENANT, "other").name for _ in range(20)} == {"well"}
    assert pool.resting() == {"spent": f"status {status}"}

    answers = iter([UpstreamExhausted("no"), KeyState(), KeyState(access_permitted=True)])
    probed = []

    async def probe(asked):
        probed.append(asked.name)
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    probing = asyncio.create_task(pool.keep_probed(probe))
    async with asyncio.timeout(5):
        while pool.resting():
            await asyncio.sleep(0.001)
    probing.cancel()
    assert probed == ["spent"] * 3
    assert {pool.choose(TENANT, "m").name for _ in range(50)} == {"spent", "well"}


def test_an_older_answer_does_not_bring_a_spent_key_back():
    """It was under way before the key was refused."""
    spent, well = key("spent"), key("well")
    pool = UpstreamKeys([spent, well])
    pool.failed(spent, "m", refusal(402, {}, b""))
    pool.succeeded(spent, "m")

    assert pool.resting() == {"spent": "status 402"}


def test_one_that_may_not_use_a_model(clock):
    """Rests for that model, for a while."""
    one = key("one")
    pool = UpstreamKeys([one])
    pool.failed(one, "m", refusal(403, {}, b""))

    with pytest.raises(UpstreamBusy) as caught:
        pool.choose(TENANT, "m")
    assert caught.value.retry_after_s == keys.FORBIDDEN_REST_S
    assert pool.choose(TENANT, "other") is one
    clock.now += keys.FORBIDDEN_REST_S
    assert pool.choose(TENANT, "m") is one


def test_a_rate_that_is_used_up(clock, monkeypatch):
    """Rests until Venice's own time, which is in milliseconds since 1970."""
    one = key("one")
    pool = UpstreamKeys([one])
    monkeypatch.setattr("service.upstream.refusals.time.time", lambda: 2000.0)
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "2012500"}
    pool.failed(one, "m", refusal(429, headers, b""))

    with pytest.raises(UpstreamBusy) as caught:
        pool.choose(TENANT, "m")
    assert caught.value.retry_after_s == 13
    clock.now += 12.5
    assert pool.choose(TENANT, "m") is one


def test_overload_is_no_ones_fault():
    """Venice names a time, and the key goes on."""
    one = key("one")
    pool = UpstreamKeys([one])
    for _ in range(20):
        pool.failed(one, "m", refusal(429, {"Retry-After": "30"}, b""))
        pool.failed(one, "m", refusal(503, {}, b""))
        pool.failed(one, "m", UpstreamUnreachable("no"))
        pool.failed(one, "m", refusal(400, {}, b""))

    assert pool.choose(TENANT, "m") is one


@pytest.mark.parametrize(
    "error", [UpstreamError("500"), UpstreamCut("cut"), UpstreamTimeout("late")]
)
def test_the_breaker(clock, error):
    """After five failures in a row the key rests for that model; then one call shows the way."""
    one = key("one")
    pool = UpstreamKeys([one])
    for _ in range(keys.FAILURES_IN_A_ROW - 1):
        pool.failed(one, "m", error)
    pool.succeeded(one, "m")
    for _ in range(keys.FAILURES_IN_A_ROW):
        assert pool.choose(TENANT, "m") is one
        pool.failed(one, "m", error)
    with pytest.raises(UpstreamBusy):
        pool.choose(TENANT, "m")
    assert pool.choose(TENANT, "other") is one

    clock.now += keys.FAILING_REST_S
    assert pool.choose(TENANT, "m") is one
    with pytest.raises(UpstreamBusy):
        pool.choose(TENANT, "m")
    pool.failed(one, "m", error)
    clock.now += keys.FAILING_REST_S
    with pytest.raises(UpstreamBusy):
        pool.choose(TENANT, "m")
    clock.now += keys.FAILING_REST_S
    assert pool.choose(TENANT, "m") is one
    pool.succeeded(one, "m")
    assert [pool.choose(TENANT, "m") for _ in range(3)] == [one] * 3


def test_a_callers_mistake_shows_that_a_model_is_well(clock):
    """Or one bad call would keep all others waiting for the trial's time."""
    one = key("one")
    pool = UpstreamKeys([one])
    for _ in range(keys.FAILURES_IN_A_ROW):
        pool.failed(one, "m", UpstreamCut("cut"))
    clock.now += keys.FAILING_REST_S
    assert pool.choose(TENANT, "m") is one
    pool.failed(one, "m", refusal(400, {}, b""))

    assert [pool.choose(TENANT, "m") for _ in range(3)] == [one] * 3


@pytest.mark.parametrize("unit", ["requests", "tokens"])
def test_an_answer_that_used_up_a_rate(clock, monkeypatch, unit):
    """Its key rests for the model until Venice's own time, though answers that were under way come
    in; the others go on, and so does it for other models."""
    monkeypatch.setattr("service.upstream.refusals.time.time", lambda: 2000.0)
    one, other = key("one"), key("other")
    pool = UpstreamKeys([one, other])
    said = {f"x-ratelimit-remaining-{unit}": "0", f"x-ratelimit-reset-{unit}": "2012500"}
    pool.succeeded(one, "m", said)
    pool.succeeded(one, "m", {f"x-ratelimit-remaining-{unit}": "3"})

    assert {pool.choose(TENANT, "m").name for _ in range(20)} == {"other"}
    assert {pool.choose(TENANT, "n").name for _ in range(50)} == {"one", "other"}
    (rest,) = pool.rests()[one.id]
    assert (rest.model, rest.reason, rest.seconds_left) == ("m", "rate used up", 12.5)
    clock.now += 12.5
    assert {pool.choose(TENANT, "m").name for _ in range(50)} == {"one", "other"}
    assert pool.rests() == {}


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "9999999999999"},
        {"x-ratelimit-remaining-requests": "0"},
        {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "soon"},
        # Of failures: these are one user's, not the key's.
        {"x-ratelimit-remaining": "0", "x-ratelimit-resets": "9999999999999"},
    ],
)
def test_an_answer_that_used_up_none(said):
    """Its key goes on."""
    one = key("one")
    pool = UpstreamKeys([one])
    pool.succeeded(one, "m", said)

    assert pool.choose(TENANT, "m") is one


def test_a_rate_that_comes_back_tomorrow(clock):
    """Is asked for again within a minute: it may be another one by then."""
    one = key("one")
    pool = UpstreamKeys([one])
    far = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "9" * 13}
    pool.succeeded(one, "m", far)

    clock.now += keys.MOST_RATE_REST_S - 1
    with pytest.raises(UpstreamBusy):
        pool.choose(TENANT, "m")
    clock.now += 1
    assert pool.choose(TENANT, "m") is one


def test_one_with_next_to_nothing_is_the_last_resort():
    """Whatever is under way on the others; one whose balance nobody knows is taken for well."""
    poor, rich, unknown = key("poor"), key("rich"), key("unknown")
    pool = UpstreamKeys([poor, rich, unknown])
    pool.note_state(poor, KeyState(access_permitted=True, balances={"USD": 0.05, "DIEM": 0.04}))
    pool.note_state(rich, KeyState(access_permitted=True, balances={"USD": 0.05, "DIEM": 0.06}))
    pool.note_state(unknown, KeyState(access_permitted=True))
    for one in (rich, unknown):
        pool.in_flight[one.id] = 100
    assert {pool.choose(TENANT, "m").name for _ in range(50)} == {"rich", "unknown"}

    for one in (rich, unknown):
        pool.failed(one, "m", refusal(402, {}, b""))
    assert pool.choose(TENANT, "m") is poor
    pool.note_state(poor, KeyState(access_permitted=True, balances={"USD": 5.0}))
    pool.note_state(rich, KeyState(access_permitted=True))
    assert {pool.choose(TENANT, "m").name for _ in range(50)} == {"poor"}


def test_a_fresh_key_goes_before_a_full_one():
    """One that was tried for this call has just failed it."""
    poor, rich = key("poor"), key("rich")
    pool = UpstreamKeys([poor, rich])
    pool.note_state(poor, KeyState(access_permitted=True, balances={"USD": 0.0}))

    assert pool.choose(TENANT, "m") is rich
    assert pool.choose(TENANT, "m", {rich.id}) is poor


def test_no_trial_after_a_rate_has_come_back(clock):
    """Its time is Venice's own: then all may go."""
    one = key("one")
    pool = UpstreamKeys([one])
    pool.failed(one, "m", refusal(429, {}, b""))
    clock.now += 5

    assert [pool.choose(TENANT, "m") for _ in range(3)] == [one] * 3


def test_names_without_end_are_not_kept():
    """Callers may think of any."""
    one = key("one")
    pool = UpstreamKeys([one])
    for number in range(keys.MOST_CONDITIONS + 10):
        pool.failed(one, f"m{number}", UpstreamCut("cut"))

    assert len(pool._conditions) <= keys.MOST_CONDITIONS


def test_a_secret_is_not_shown():
    """Not even in a traceback."""
    assert "secret of" not in repr(key("a"))


BUSY, NAMED = refusal(503, {}, b""), refusal(429, {"Retry-After": "30"}, b"")


@pytest.mark.parametrize(
    ("error", "is_inference", "has_key", "is_repeated"),
    [
        (UpstreamUnreachable("x"), False, False, True),
        (refusal(401, {}, b""), False, True, True),
        (refusal(402, {}, b""), True, False, False),
        (BUSY, True, False, True),
        (BUSY, True, True, True),
        (BUSY, False, True, False),
        (NAMED, True, False, True),
        (refusal(500, {}, b""), True, True, False),
        (refusal(502, {}, b""), True, True, False),
        (refusal(504, {}, b""), True, True, False),
        (UpstreamCut("x"), True, True, False),
        (UpstreamTimeout("x"), True, True, False),
        (UpstreamRejected("x"), True, True, False),
    ],
)
def test_what_is_repeated(error, is_inference, has_key, is_repeated):
    """Only what was surely not charged."""
    pause = pause_s(error, 1, is_inference=is_inference, has_key=has_key, has_fresh_key=has_key)

    assert (pause is not None) is is_repeated


def pause(error, attempt=1, *, has_fresh_key=False):
    """Of a call of text, with a key at hand."""
    return pause_s(error, attempt, is_inference=True, has_key=True, has_fresh_key=has_fresh_key)


def test_pauses():
    """Grow, are jittered, and heed the time that Venice names."""
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
    """A hundred repetitions, then none until something is answered."""
    budget = RetryBudget()

    assert sum(budget.spend() for _ in range(1000)) == MOST_LEFT
    budget.earn()
    assert sum(budget.spend() for _ in range(10)) == 2


def test_sealed_keys_open_for_their_owner_alone():
    """With any master key of the ring, and each time in other bytes."""
    ring = crypto.Keyring(["new-master-key", "old-master-key"])
    sealed = crypto.Keyring(["old-master-key"]).seal(b"owner", b"secret")

    assert ring.unseal(b"owner", sealed) == b"secret"
    assert sealed != crypto.Keyring(["old-master-key"]).seal(b"owner", b"secret")
    with pytest.raises(crypto.UnknownMasterKey):
        crypto.Keyring(["new-master-key"]).unseal(b"owner", sealed)
    with pytest.raises(crypto.UnknownMasterKey):
        ring.unseal(b"other", sealed)
