"""Metrics that are noted are applied to their instruments together."""

import pytest
from prometheus_client import CollectorRegistry, Counter

from service.telemetry import metrics
from service.telemetry.metrics import Histogram

BUCKETS = (0.1, 1, 10)


@pytest.fixture
def registry():
    """A registry of the test's own."""
    return CollectorRegistry()


def buckets_of(registry, name, **labels):
    """Return the cumulative count of each bucket, and the sum."""
    counts = [
        registry.get_sample_value(f"{name}_bucket", {**labels, "le": bound})
        for bound in ("0.1", "1.0", "10.0", "+Inf")
    ]
    return counts, registry.get_sample_value(f"{name}_sum", labels)


@pytest.mark.parametrize(
    "amounts", [[], [0.1, 1, 10], [0, 0.05, 0.5, 0.5, 11, 10.5, 1.5], [-1, 0.1000001]]
)
def test_observations_together_count_as_one_by_one(registry, amounts):
    """Each amount counts in the bucket that it would be in alone; a bound belongs to its bucket."""
    together = Histogram("together", "", buckets=BUCKETS, registry=registry)
    alone = Histogram("alone", "", buckets=BUCKETS, registry=registry)

    together.observe_all(amounts)
    for amount in amounts:
        alone.observe(amount)

    counts, total = buckets_of(registry, "together")
    assert counts == buckets_of(registry, "alone")[0]
    assert total == pytest.approx(sum(amounts))


def test_notes_reach_the_instruments_of_their_labels(registry):
    """Increments and observations reach the instrument with their labels, and nothing is left."""
    counter = Counter("calls", "", ("kind",), registry=registry)
    histogram = Histogram("seconds", "", ("kind",), buckets=BUCKETS, registry=registry)
    metrics.flush_noted()
    for kind, amount in (("a", 0.5), ("b", 2), ("a", 0.05)):
        metrics.note(counter, amount, kind)
        metrics.note(histogram, amount, kind)
    assert registry.get_sample_value("calls_total", {"kind": "a"}) is None

    metrics.flush_noted()
    metrics.flush_noted()

    assert registry.get_sample_value("calls_total", {"kind": "a"}) == pytest.approx(0.55)
    assert registry.get_sample_value("calls_total", {"kind": "b"}) == 2
    assert buckets_of(registry, "seconds", kind="a") == ([1, 2, 2, 2], pytest.approx(0.55))
    assert buckets_of(registry, "seconds", kind="b") == ([0, 0, 1, 1], 2)


def test_notes_are_applied_once_there_are_many(registry):
    """The queue of notes is bounded."""
    counter = Counter("many", "", registry=registry)
    metrics.flush_noted()

    for _ in range(metrics.MAX_NOTED):
        metrics.note(counter, 1)

    assert registry.get_sample_value("many_total") == metrics.MAX_NOTED
