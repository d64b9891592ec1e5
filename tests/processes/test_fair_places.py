"""What each of several organisations gets of one real engine, over HTTP, while one of them floods it."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.billing import tenants
from tests.support.served import Answer, Served, ask, decoder, served, until
from tests.support.tenants import Tenant

TOKENS = 12  # of each answer
FLOOD = 30  # requests that the flooding organisation has on their way to each worker at any time
# For each place that is another's by right, so many callers. Answers of one length that are begun in one step end in
# one step: with fewer, nobody of theirs waits for the places that become free, and they go to the flood, rightly.
TO_A_PLACE = 2
ROUNDS = 6  # answers that each caller of the quiet ones gets meanwhile


@dataclass
class _Callers:
    """An organisation's callers: each asks again as soon as it was answered, or soon after it was refused."""

    there: Served
    who: Tenant
    many: int
    answers: list[Answer] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def begin(self) -> None:
        """All of them."""
        self.tasks = [asyncio.create_task(self._ask(stream=number % 2 == 0)) for number in range(self.many)]

    async def end(self) -> None:
        """None of them any more."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _ask(self, *, stream: bool) -> None:
        async with self.there.callers() as client:
            for number in itertools.count():
                said = f"{self.who.text[-6:]} {number}"
                body = {"model": "talker", "prompt": said, "max_tokens": TOKENS, "ignore_eos": True, "stream": stream}
                answer = await ask(client, body, "/v1/completions", headers=self.who.headers)
                self.statuses[answer.status] += 1
                if answer.status == httpx.codes.OK:
                    self.answers.append(answer)
                else:
                    await asyncio.sleep(0.05)


PLACES: dict[str, tuple[int, int, dict[str, Any], dict[str, Any]]] = {
    "at the gateway's door": (1, 6, {"concurrency": 6, "queue": 12}, {"max_sequences": 16}),
    "in the engine's queue": (1, 4, {"concurrency": 64, "queue": 64}, {"max_sequences": 4, "max_waiting": 13}),
    "of two workers": (2, 4, {"concurrency": 9, "queue": 12}, {"max_sequences": 4}),
}
"""Workers, the places that are shared, and what makes them so many."""


@pytest.mark.parametrize("quiet", [1, 2], ids=["two organisations", "three organisations"])
@pytest.mark.parametrize("where", PLACES)
async def test_each_gets_its_share_under_a_flood(smollm2_gguf: Path, tmp_path: Path, where: str, quiet: int) -> None:
    """One organisation asks for many times as much as the others, and more than there is place for. It is told to come
    back; the others never are, and get as many tokens as it gets: half of all, or a third each."""
    workers, places, limits, model = PLACES[where]
    many = TO_A_PLACE * math.ceil(places / (1 + quiet))
    everybody = tenants(tmp_path, *({} for _ in range(1 + quiet)))
    talker = decoder(smollm2_gguf, cache_bytes="64MiB", **model)
    with served(tmp_path, [talker], workers=workers, limits=limits) as there:
        flood, *others = [
            _Callers(there, who, many if number else FLOOD * workers) for number, who in enumerate(everybody)
        ]
        flood.begin()
        await until(lambda: len(flood.answers) >= ROUNDS)
        for callers in others:
            callers.begin()
        await until(lambda: all(callers.answers for callers in others))
        before = [len(callers.answers) for callers in (flood, *others)]

        def since() -> list[int]:
            return [len(callers.answers) - had for callers, had in zip((flood, *others), before, strict=True)]

        await until(lambda: sum(since()[1:]) >= ROUNDS * many * quiet)
        got = since()
        for callers in (flood, *others):
            await callers.end()
    assert flood.statuses[httpx.codes.TOO_MANY_REQUESTS]
    for callers in others:
        assert set(callers.statuses) == {httpx.codes.OK}
    for answers in got[1:]:
        assert answers / sum(got) > 0.8 / (1 + quiet), got
