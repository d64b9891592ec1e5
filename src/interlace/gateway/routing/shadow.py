"""Shadow requests: a second model is asked as well, and nobody sees what it says.

They are the operator's: no caller pays for them, so they are in no usage event and hold no budget; what they cost is
counted in `/metrics`. A request that is answered never waits for its shadow.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from interlace.engines.types import GenerateRequest
from interlace.gateway.bounds import UNSTOPPABLE_TOKENS, tokens_of
from interlace.gateway.meter import Meter
from interlace.gateway.route_metrics import RouteCounters
from interlace.ledger.prices import charge

if TYPE_CHECKING:
    from interlace.gateway.calls import Work

MOST_AT_ONCE = 16  # beyond them a shadow is left out, and counted as such

_log = logging.getLogger(__name__)


@dataclass
class Shadows:
    """Those that run."""

    counters: RouteCounters
    _running: set[asyncio.Task[None]] = field(default_factory=set)

    def begin(self, route: str, work: Work) -> None:
        """Ask beside the request that is being answered."""
        if len(self._running) >= MOST_AT_ONCE:
            self.counters.shadows.labels(route, work.model, "left_out").inc()
            return
        task = asyncio.create_task(self._run(route, _renamed(work)))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self, route: str, work: Work) -> None:
        meter, end = Meter(), "failed"
        try:
            if work.ask.embed is not None:
                meter.see(0, await work.engine.embed(work.ask.embed))
            for part, request in enumerate(work.requests):
                async with aclosing(work.engine.generate(request)) as events:
                    async for event in events:
                        meter.see(part, event)
            end = "finished"
        except Exception as error:  # noqa: BLE001 - a shadow must disturb nobody; its end is counted
            _log.info("a shadow request failed", extra={"fields": {"model": work.model, "error": type(error).__name__}})
        finally:
            self.counters.shadows.labels(route, work.model, end).inc()
            tokens = tokens_of(meter.usage(), embedding=work.ask.embed is not None)
            self.counters.shadow_cost.labels(route, work.model).inc(charge(work.price, tokens))


def _renamed(work: Work) -> Work:
    """Under ids of its own, and with an end: no budget will end it."""

    def bounded(request: GenerateRequest) -> GenerateRequest:
        most = request.sampling.max_tokens
        sampling = msgspec.structs.replace(
            request.sampling, max_tokens=UNSTOPPABLE_TOKENS if most is None else min(most, UNSTOPPABLE_TOKENS)
        )
        return msgspec.structs.replace(request, id=f"{request.id}~s", sampling=sampling)

    embed = None if work.ask.embed is None else msgspec.structs.replace(work.ask.embed, id=f"{work.ask.embed.id}~s")
    requests = tuple(bounded(request) for request in work.requests)
    return msgspec.structs.replace(work, ask=msgspec.structs.replace(work.ask, embed=embed), requests=requests)
