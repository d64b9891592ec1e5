"""What `/metrics` shows of routes. Labels hold names of the configuration and words of ours only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:  # it is made of what is measured here
    from interlace.gateway.routing import Live


class RouteCounters:
    """All of them, in a gateway's registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, doc: str, *labels: str) -> Counter:
            return Counter(name, doc, labels, registry=registry)

        self.attempts = counter(
            "interlace_route_attempts", "Attempts by routes, by their end.", "route", "model", "end"
        )
        self.judged = counter(
            "interlace_route_judged", "Answers that open_first judged: kept, or why not.", "route", "verdict"
        )
        self.saved = counter(
            "interlace_route_saved_nanos", "What the next model would have cost for the answers kept.", "route"
        )
        self.shadows = counter("interlace_shadow_requests", "Shadow requests, by their end.", "route", "model", "end")
        self.shadow_cost = counter("interlace_shadow_cost_nanos", "What shadow requests cost us.", "route", "model")
        self.reused = counter("interlace_route_reused", "Requests answered from memory, and not.", "route", "result")


class BreakerGauges(Collector):
    """Read when asked."""

    live: Mapping[str, Live] = MappingProxyType({})

    def collect(self) -> Iterator[Metric]:
        """One family after the other."""
        states = GaugeMetricFamily("interlace_breaker_open", "1 while routes ask the model last.", labels=["model"])
        quick = GaugeMetricFamily(
            "interlace_route_first_token_seconds", "Median time to first token of late, by routes.", labels=["model"]
        )
        for model, live in self.live.items():
            states.add_metric([model], live.breaker.state != "closed")
            if (median := live.first_tokens.percentile(50)) is not None:
                quick.add_metric([model], median)
        yield states
        yield quick
