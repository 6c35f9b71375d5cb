"""The bounds of what is recorded beside the books, and the texts of refusals without the caller's
words."""

from datetime import UTC, datetime
from uuid import UUID

import pytest

from service.api.refusals import clean_message, clean_param
from service.derived import Recorder, Refusal
from service.derived import recorder as recording
from service.derived.queues import Queue
from service.derived.retention import surplus

A, B, C = (UUID(int=number) for number in (11, 12, 13))


def queue_of(**changes):
    """Return a queue with room for ten rows, six of an owner and four of a source."""
    return Queue("rows", **{"places": 10, "of_owner": 6, "of_source": 4, **changes})


def rows_of(queue):
    """Return the rows that wait, oldest first."""
    return [queued.row for queued in queue.first(10_000)]


def refusal(organization_id=A, api_key_id=None, code="rate_limited"):
    return Refusal(
        refused_at=datetime.now(UTC),
        request_id="r",
        method="POST",
        route="/v1/x",
        status=429,
        code=code,
        message="m",
        organization_id=organization_id,
        api_key_id=api_key_id,
    )


def test_a_source_has_a_share_of_its_owner():
    """A key has fewer places than its organization, and a second key still has some."""
    queue = queue_of()

    assert [queue.add(number, A, "one") for number in range(5)] == [None] * 4 + ["share"]
    assert [queue.add(number, A, "two") for number in range(3)] == [None, None, "share"]
    assert len(queue) == 6


def test_a_flood_leaves_room_for_others():
    """One owner cannot fill the queue, however many sources it has."""
    queue = queue_of()
    for number in range(1000):
        queue.add(number, A, number)

    assert queue.add("other", B, "b") is None
    assert rows_of(queue)[-1] == "other"


def test_a_full_queue_drops():
    """A queue without a place drops the newest row and keeps the oldest."""
    queue = queue_of(places=2)

    assert [queue.add(number, number, number) for number in range(3)] == [None, None, "queue"]
    assert rows_of(queue) == [0, 1]


def test_places_are_free_again_once_rows_are_removed():
    """Shares are of what waits. What was written takes no place, and leaves nothing behind."""
    queue = queue_of()
    for number in range(4):
        queue.add(number, A, "one")
    assert queue.add(4, A, "one") == "share"
    queue.remove(2)

    assert rows_of(queue) == [2, 3]
    assert queue.add(5, A, "one") is None
    queue.remove(3)
    assert len(queue) == 0
    assert not queue._of_owner
    assert not queue._of_source


async def test_refusals_without_a_place_are_counted_on_one_with():
    """Beyond the share of a key, a refusal raises ``repeats`` of the newest one of its code."""
    recorder = Recorder(None)
    for _ in range(recording.REFUSALS_OF_SOURCE + 7):
        recorder.add_refusal(refusal(api_key_id=B), "")
    recorder.add_refusal(refusal(api_key_id=C), "")

    rows = rows_of(recorder._refusals)
    assert len(rows) == recording.REFUSALS_OF_SOURCE + 1
    assert [row.repeats for row in rows if row.repeats] == [7]
    assert sum(1 + row.repeats for row in rows if row.api_key_id == B) == len(rows) - 1 + 7


async def test_strangers_share_what_one_organization_has():
    """All addresses together have the places of one organization, and each has a key's."""
    recorder = Recorder(None)
    for number in range(recording.REFUSALS_OF_OWNER * 2):
        recorder.add_refusal(refusal(organization_id=None), f"10.0.{number % 50}.1")
    recorder.add_refusal(refusal(organization_id=B), "")

    assert recorder.queued == recording.REFUSALS_OF_OWNER + 1


@pytest.mark.parametrize(
    ("counts", "max_rows", "kept"),
    [
        ({}, 10, {}),
        ({A: 10}, 10, {}),
        ({A: 11}, 10, {A: 10}),
        ({A: 1000, B: 2}, 10, {A: 8}),
        ({A: 1000, B: 2, None: 500}, 12, {A: 5, None: 5}),
        ({A: 4, B: 4, C: 4}, 9, {A: 3, B: 3, C: 3}),
        ({A: 1, B: 1, C: 100}, 3, {C: 1}),
    ],
)
def test_those_with_the_most_rows_lose_theirs(counts, max_rows, kept):
    """Rows beyond the number are removed from the organizations with the most of them."""
    assert surplus(counts, max_rows) == kept


@pytest.mark.parametrize(
    ("message", "param", "expected"),
    [
        ("temperature: must be at most 2.", "temperature", "temperature: must be at most 2."),
        ("There is no model 'Zq7'. Did you mean 'x'?", "model", "There is no model …?"),
        ("model: Invalid enum value 'a' Zq7 'b'.", "model", "model: Invalid enum value …."),
        ("model: Invalid enum value 'a Zq7", "model", "model: Invalid enum value …"),
        ('x-rialto-tags: "Zq7\'s" is bad.', "x-rialto-tags", "x-rialto-tags: … is bad."),
        ("Zq7: is there twice in one object.", "Zq7", "…: is there twice in one object."),
        (
            "tools[3].Zq7: its price is unknown.",
            "tools[3].Zq7",
            "tools[3].…: its price is unknown.",
        ),
        ("model: Expected 'str', got 'int'.", "model", "model: Expected 'str', got 'int'."),
        ("Zq7: Expected 'str', got 'int'.", "Zq7", "…: Expected 'str', got 'int'."),
        ("The API key's limit of 5.00 USD has", None, "The API key's limit of 5.00 USD has"),
        ("There is nothing at GET '/api/v1/Zq7'. If …", None, "There is nothing at GET …. If …"),
        ("a\0b\ud800", None, "a…b?"),
        ("rk_" + "x" * 43, None, "[redacted]"),
        ("x" * 1000, None, "x" * 500),
    ],
)
def test_a_message_has_none_of_the_callers_words(message, param, expected):
    """What is quoted is left out, and so are names that Rialto does not know."""
    assert clean_message(message, param) == expected


@pytest.mark.parametrize(
    ("param", "expected"),
    [
        ("messages[0].content", "messages[0].content"),
        ("Content-Type", "Content-Type"),
        ("tools[12].Zq7", "tools[12].…"),
        ("metadata.4111111111111111", "metadata.…"),
        ("a\ud800", "…"),
    ],
)
def test_a_field_is_named_only_if_rialto_knows_it(param, expected):
    """Names of members may be the caller's own words."""
    assert clean_param(param) == expected
