"""What a worker counts together with those of other machines, where `redis.url` names a server for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from interlace.config import RouteSettings, Settings
from interlace.errors import InterlaceError
from interlace.gateway.processes.counters import Counters
from interlace.gateway.processes.redis_answers import RedisMemory, knows_answers
from interlace.gateway.routing import RedisBreakers
from interlace.ledger import LinkedRegistry, RedisLimits, bank
from interlace.ledger.escrow import Worker
from interlace.redis_link import RedisLink, address_of

MACHINES_SECONDS = 5.0  # from one look at how many machines there are to the next


class RedisGauges(Collector):
    """Read when asked; of one worker, and of all of them added up."""

    def __init__(self, across: Across) -> None:
        self._across, self._link, self._limits = across, across.link, across.limits

    def collect(self) -> Iterator[Metric]:
        """One family after the other."""
        yield GaugeMetricFamily("interlace_redis_up", "Workers that are connected to Redis.", int(self._link.trusted))
        yield GaugeMetricFamily(
            "interlace_redis_machines", "By how many limits are divided while Redis is away.", self._across.machines
        )
        yield CounterMetricFamily("interlace_redis_losses", "Times a worker lost Redis.", self._link.losses)
        yield CounterMetricFamily(
            "interlace_redis_alone", "Limits that were looked at without Redis, while it was away.", self._limits.alone
        )


@dataclass(eq=False)
class Across:
    """See the module. `machines`: how many share the database; while the server is away, limits are divided by it."""

    registry: LinkedRegistry
    link: RedisLink
    machines: int = 1
    limits: RedisLimits = field(init=False)
    breakers: RedisBreakers = field(init=False)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @classmethod
    async def open(
        cls,
        settings: Settings,
        env: Mapping[str, str] | None,
        registry: LinkedRegistry,
        counters: Counters,
        worker: Worker,
    ) -> Across | None:
        """Connected, if the server is there; None where the configuration names none. Raises `ConfigError`."""
        address = address_of(settings.redis.url, os.environ if env is None else env)
        if not address:
            return None
        across = cls(registry, RedisLink(address, worker.id, settings.redis.timeout_seconds))
        across.limits = RedisLimits(across.link, counters.limits, lambda: across.machines)
        knows_answers(across.link)
        across.breakers = RedisBreakers(across.link, counters.breakers.breaker)
        await across._count_machines()
        across._tasks = [asyncio.create_task(across.link.keep()), asyncio.create_task(across._keep_counting())]
        await across.link.tried()
        return across

    def memory(self, settings: Settings, route: RouteSettings) -> RedisMemory:
        """What a route remembers under these settings."""
        return RedisMemory.of(self.link, settings, route)

    def show(self, registry: CollectorRegistry) -> None:
        """In `/metrics`."""
        registry.register(RedisGauges(self))

    async def close(self) -> None:
        """Nothing runs here any more."""
        await self.link.leave()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep_counting(self) -> None:
        while True:
            await asyncio.sleep(MACHINES_SECONDS)
            await self._count_machines()

    async def _count_machines(self) -> None:
        """Those with a worker that is not closed: one that cannot be reached may still answer callers."""
        with contextlib.suppress(InterlaceError):  # then nothing is admitted anyway
            living = await asyncio.to_thread(self.registry.store.read, bank.living)
            self.machines = max(1, len({row.machine for row in living}))
