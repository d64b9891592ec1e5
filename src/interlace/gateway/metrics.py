"""What `/metrics` shows. A registry of our own per gateway; labels only ever hold words of ours or served models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from prometheus_client import CollectorRegistry, Counter, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from interlace.engines.types import Engine, Usage
from interlace.gateway.admission import Admission
from interlace.gateway.route_metrics import BreakerGauges, RouteCounters
from interlace.gateway.tallies import Count, Observed, Spread, Tally
from interlace.ledger import RULES, Outcome

if TYPE_CHECKING:  # it is made of what is measured here
    from interlace.gateway.routes import Routes
    from interlace.gateway.routing import Live

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which nothing here reads

K = TypeVar("K")

NO_MODEL = "none"  # the label where a request names no served model: callers cannot invent labels

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)


@dataclass(frozen=True, slots=True)
class TokenTimes:
    """The two histograms of one model that are touched while tokens flow, looked up once."""

    first: Observed
    between: Observed


class Metrics:
    """All measurements of one gateway."""

    def __init__(self, admission: Admission, engines: Mapping[str, Engine]) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._tally("interlace_requests", "Answered requests.", "endpoint", "model", "status")
        self.tokens = self._tally("interlace_tokens", "Tokens of settled requests.", "model", "kind")
        self.refusals = self._counter("interlace_refusals", "Refused requests.", "reason")
        self._outcomes = self._tally("interlace_outcomes", "Requests that ran, by their end.", "model", "outcome")
        self._cost = self._tally("interlace_cost_nanos", "Charged nano-dollars.", "model")
        self._secrets = self._counter("interlace_secrets", "Secrets found by guards.", "direction", "kind", "action")
        self.reloads = self._counter("interlace_reloads", "Times the configuration was read again.", "outcome")
        self.duration = self._spread(
            "interlace_request_duration_seconds", "From request to last byte.", _SECONDS, "endpoint", "model"
        )
        self._first = self._spread(
            "interlace_time_to_first_token_seconds", "From admission's door to the first token.", _SECONDS, "model"
        )
        self._between = self._spread(
            "interlace_time_between_tokens_seconds", "Between tokens of one choice.", _TOKEN_SECONDS, "model"
        )
        self._times: dict[str, TokenTimes] = {}
        self._settled: dict[str, tuple[Count, ...]] = {}
        self._ended: dict[tuple[str, Outcome], Count] = {}
        self._gauges = _Gauges(admission, engines)
        self.serve(engines)
        self.registry.register(self._gauges)
        self.routes = RouteCounters(self.registry)
        self._breakers = BreakerGauges()
        self.registry.register(self._breakers)

    def serve(self, engines: Mapping[str, Engine], routes: Routes | None = None) -> None:
        """These are served from now on. What was counted of others stays: a counter never goes back. Adapters count
        as their bases: there are many of them, they come and go, and their names are their owners'; models that have an
        owner count together."""
        labels = {name: routes.counted_as(name) if routes else name for name in engines}
        for name, label in labels.items():
            self._times[name] = TokenTimes(self._first.labels(label), self._between.labels(label))
            kinds = (self.tokens.labels(label, kind) for kind in ("prompt", "cached", "completion"))
            self._settled[name] = (*kinds, self._cost.labels(label))
            for outcome, rule in RULES.items():
                if rule.recorded:
                    self._ended[name, outcome] = self._outcomes.labels(label, outcome.value)
        self._gauges.engines, self._gauges.labels = engines, labels
        for name in routes.engines if routes else ():
            if routes and (base := routes.base(name)):
                self._times[name], self._settled[name] = self._times[base], self._settled[base]
                self._ended |= {(name, end): self._ended[base, end] for end in RULES if (base, end) in self._ended}

    def watch(self, live: Mapping[str, Live]) -> None:
        """Show how models stand towards routes."""
        self._breakers.live = live

    def show_certificate(self, expires: Callable[[], float]) -> None:
        """Show when the certificate in use ends, in seconds since 1970."""
        self._gauges.certificate_expires = expires

    def settled(self, model: str, usage: Usage, outcome: Outcome, cost_nanos: int) -> None:
        """Count a request that ran and is settled."""
        prompt, cached, completion, cost = self._settled[model]
        prompt.inc(usage.prompt_tokens)
        completion.inc(usage.completion_tokens)
        cost.inc(cost_nanos)
        if usage.cached_tokens:
            cached.inc(usage.cached_tokens)
        if ended := self._ended.get((model, outcome)):
            ended.inc()
        if outcome is Outcome.FILTERED:
            self.refusals.labels("content_filter_output").inc()

    def times(self, model: str) -> TokenTimes:
        """The histograms of a served model."""
        return self._times[model]

    def secret(self, direction: str, kind: str, action: str) -> None:
        """Count a secret that a guard masked or refused."""
        self._secrets.labels(direction, kind, action).inc()

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, doc: str, *labels: str) -> Counter:
        return Counter(name, doc, labels, registry=self.registry)

    def _tally(self, name: str, doc: str, *labels: str) -> Tally:
        return Tally(name, doc, labels, self.registry)

    def _spread(self, name: str, doc: str, bounds: tuple[float, ...], *labels: str) -> Spread:
        return Spread(name, doc, bounds, labels, self.registry)


class _Gauges(Collector):
    """Read when asked: the queue here, and what each engine's health says."""

    def __init__(self, admission: Admission, engines: Mapping[str, Engine]) -> None:
        self._admission = admission
        self.certificate_expires: Callable[[], float] | None = None  # seconds since 1970
        self.engines = engines
        self.labels: Mapping[str, str] = {name: name for name in engines}

    def collect(self) -> Iterator[Metric]:
        """One family after the other."""
        yield GaugeMetricFamily("interlace_requests_running", "Requests that run now.", self._admission.running)
        yield GaugeMetricFamily("interlace_requests_queued", "Requests that wait for a slot.", self._admission.waiting)
        if self.certificate_expires is not None:
            name, doc = "interlace_certificate_expires_timestamp_seconds", "When the certificate in use ends."
            yield GaugeMetricFamily(name, doc, self.certificate_expires())
        health = [(self.labels[name], engine.health()) for name, engine in self.engines.items()]
        for field, doc in (
            ("running", "Sequences the engine works on."),
            ("waiting", "Sequences queued in the engine."),
            ("blocks_used", "KV cache blocks in use."),
            ("blocks_total", "KV cache blocks in all."),
            ("blocks_cached", "KV cache blocks not in use that prompts may yet find."),
        ):
            yield self._family(f"interlace_engine_{field}", doc, _summed((n, getattr(h, field)) for n, h in health))
        unready = {name for name, each in health if each.state != "ready"}
        ready = {name: name not in unready for name, _ in health}
        yield self._family("interlace_engine_ready", "1 when the engine is ready.", ready)
        for field, doc in (
            ("restarts", "Times the engine was restarted."),
            ("preemptions", "Times a sequence gave its slot or blocks to another."),
            ("prefix_tokens", "Prompt tokens found in the KV cache."),
        ):
            family = CounterMetricFamily(f"interlace_engine_{field}", doc, labels=["model"])
            for model, count in _summed((n, getattr(h, field)) for n, h in health).items():
                family.add_metric([model], count)
            yield family
        doc = "Sequences queued in the engine: high, normal, low, batch."
        classes = GaugeMetricFamily("interlace_engine_waiting_by_class", doc, labels=["model", "class"])
        each_class = (((n, name), count) for n, h in health for name, count in h.waiting_by_class.items())
        for labels, count in _summed(each_class).items():
            classes.add_metric(labels, count)
        yield classes

    def _family(self, name: str, doc: str, values: Mapping[str, float]) -> Metric:
        family = GaugeMetricFamily(name, doc, labels=["model"])
        for model, value in values.items():
            family.add_metric([model], value)
        return family


def _summed(values: Iterable[tuple[K, float]]) -> dict[K, float]:
    """By label: several engines may have one together."""
    sums: dict[K, float] = {}
    for label, value in values:
        sums[label] = sums.get(label, 0) + value
    return sums
