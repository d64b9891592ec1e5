"""Our counters and histograms say what Prometheus' own would."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest

from interlace.gateway.tallies import Spread, Tally

BOUNDS = (0.005, 0.01, 1, 2.5)
disable_created_metrics()  # type: ignore[no-untyped-call]


@given(
    counted=st.lists(st.tuples(st.sampled_from(["a", 'b"\n\\', ""]), st.integers(0, 10**12)), max_size=9),
    seen=st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([0, 0.005, 0.0051, 1, 2.5, 2.6, 1e9])), max_size=9),
)
@settings(max_examples=100, deadline=None)
def test_the_page_is_what_prometheus_writes(counted: list[tuple[str, int]], seen: list[tuple[str, float]]) -> None:
    """The same numbers in the same order and the same words, bounds that a value equals and labels with quotes in
    them included."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tally = Tally("x_things", "Things.", ("one",), ours)
    counter = Counter("x_things", "Things.", ("one",), registry=theirs)
    spread = Spread("x_seconds", "Seconds.", BOUNDS, ("one",), ours)
    histogram = Histogram("x_seconds", "Seconds.", ("one",), buckets=BOUNDS, registry=theirs)
    for label, amount in counted:
        tally.labels(label).inc(amount)
        counter.labels(label).inc(amount)
    for label, value in seen:
        spread.labels(label).observe(value)
        histogram.labels(label).observe(value)
    assert generate_latest(ours) == generate_latest(theirs)
