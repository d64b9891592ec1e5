"""`/metrics` of several processes as if they were one: counters and queues add up, what all see alike is told once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

_SEEN_BY_ALL = (
    "interlace_engine_", "interlace_breaker_", "interlace_route_first_token_", "interlace_redis_machines",
)  # fmt: skip
"""Of engine hosts that all share, of models, and of machines: each process says the same, or knows only
its part of it."""

_Labels = tuple[tuple[str, str], ...]


@dataclass(eq=False)
class Gathered(Collector):
    """Families by name, each with its samples added up."""

    families: dict[str, Metric] = field(default_factory=dict)
    _values: dict[tuple[str, str, _Labels], float] = field(default_factory=dict)

    def add(self, text: str, *, gone: bool = False) -> None:
        """Take in what a process says, or, `gone`, has said last: then nothing runs there any more."""
        for family in text_string_to_metric_families(text):
            if gone and family.type == "gauge":
                continue
            if family.name not in self.families:
                self.families[family.name] = Metric(family.name, family.documentation, family.type)
            once = family.name.startswith(_SEEN_BY_ALL)
            for sample in family.samples:
                place = family.name, sample.name, tuple(sorted(sample.labels.items()))
                before = self._values.get(place, 0.0)
                self._values[place] = max(before, sample.value) if once else before + sample.value

    def collect(self) -> Iterator[Metric]:
        """One family after the other."""
        for family in self.families.values():
            family.samples = []
        for (name, sample, labels), value in self._values.items():
            self.families[name].add_sample(sample, dict(labels), value)
        yield from self.families.values()

    def text(self) -> bytes:
        """In Prometheus' text format."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)


def gathered(living: Iterable[str], gone: Iterable[str]) -> bytes:
    """What living processes say, with what those that are gone have counted: a counter must not go back."""
    sums = Gathered()
    for text in living:
        sums.add(text)
    for text in gone:
        sums.add(text, gone=True)
    return sums.text()


def counted(before: str, more: str) -> str:
    """Counters of two processes that are gone, as of one."""
    sums = Gathered()
    for text in (before, more):
        sums.add(text, gone=True)
    return sums.text().decode()
