"""Counters and histograms for the event loop: `prometheus_client`'s at a fifth of the cost, which matters where every
chunk of every stream is measured. They take no lock, so they are counted and read on the loop's thread alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Count:
    """One series of a `Tally`."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, amount: int = 1) -> None:
        """So many more."""
        self.value += amount


class Tally(Collector):
    """A counter with labels."""

    def __init__(self, name: str, doc: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._about = (name, doc, tuple(labels))
        self._series: dict[tuple[str, ...], Count] = {}
        registry.register(self)

    def labels(self, *values: str) -> Count:
        """The series of these values, made at the first time."""
        found = self._series.get(values)
        if found is None:
            found = self._series[values] = Count()
        return found

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        name, doc, labels = self._about
        family = CounterMetricFamily(name, doc, labels=labels)
        for values, count in list(self._series.items()):
            family.add_metric(values, count.value)
        yield family


class Observed:
    """One series of a `Spread`."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # the last one is beyond all bounds
        self.total = 0.0

    def observe(self, amount: float) -> None:
        """One more value."""
        self.counts[bisect_left(self._bounds, amount)] += 1
        self.total += amount


class Spread(Collector):
    """A histogram with labels; a bound itself belongs to its bucket."""

    def __init__(
        self, name: str, doc: str, bounds: Sequence[float], labels: Sequence[str], registry: CollectorRegistry
    ) -> None:
        self._about = (name, doc, tuple(labels))
        self._bounds = tuple(float(bound) for bound in bounds)
        self._series: dict[tuple[str, ...], Observed] = {}
        registry.register(self)

    def labels(self, *values: str) -> Observed:
        """The series of these values, made at the first time."""
        found = self._series.get(values)
        if found is None:
            found = self._series[values] = Observed(self._bounds)
        return found

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        name, doc, labels = self._about
        family = HistogramMetricFamily(name, doc, labels=labels)
        names = [*map(_written, self._bounds), "+Inf"]
        for values, series in list(self._series.items()):
            family.add_metric(
                values, buckets=[*zip(names, accumulate(series.counts), strict=True)], sum_value=series.total
            )
        yield family


def _written(bound: float) -> str:
    text: str = floatToGoString(bound)  # type: ignore[no-untyped-call]
    return text
