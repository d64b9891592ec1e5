"""Who is served how much: organisations, adapters and classes beside each other, over a make-believe model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from interlace.engines.local.graph import BLOCK
from interlace.engines.local.scheduler import Scheduler
from interlace.engines.local.sequences import Sequence
from interlace.engines.types import BATCH_PRIORITY
from tests.support.paged import PagedModel, step

STEP_TOKENS, SLOTS = 64, 8


class Server:
    """A scheduler with what an engine does around it: sequences end after so many tokens."""

    def __init__(self, *, blocks: int = 400, slots: int = SLOTS) -> None:
        self.scheduler = Scheduler(blocks=blocks, max_running=slots, step_tokens=STEP_TOKENS)
        self.model = PagedModel(blocks)
        self.ends: dict[Sequence, int] = {}
        self.computed: Counter[tuple[str, str]] = Counter()  # tokens, by organisation and adapter
        self.steps = 0
        self._asked = 0

    def ask(self, prompt: int, output: int, tenant: str = "", adapter: str = "", priority: int = 0) -> Sequence:
        """A request of its own words: no two find each other's blocks."""
        self._asked += 1
        sequence = Sequence([self._asked] * prompt, tenant=tenant, adapter=adapter, priority=priority)
        self.ends[sequence] = prompt + output
        self.scheduler.add(sequence)
        return sequence

    def run(self, until: Callable[[], bool], each: Callable[[], object] = lambda: None) -> int:
        """Steps until something holds; how many."""
        began = self.steps
        while not until():
            each()
            plan, told = step(self.scheduler, self.model)
            self.steps += 1
            for piece in plan:
                self.computed[piece.sequence.tenant, piece.sequence.adapter] += piece.count
            for sequence in told:
                if len(sequence.tokens) >= self.ends[sequence]:
                    self.scheduler.remove(sequence)
                    del self.ends[sequence]
            assert self.steps - began < 20_000, "it never happens"
        return self.steps - began

    def running(self, **fields: object) -> int:
        """How many run that have these fields."""
        return sum(all(getattr(s, name) == value for name, value in fields.items()) for s in self.scheduler.running)


def test_one_request_beside_a_flood_is_served_as_if_it_had_half() -> None:
    """Against a hundred requests of another organisation, one is done in the time that half of the engine needs."""
    server = Server()
    for _ in range(100):
        server.ask(512, 8, "flood")
    server.run(lambda: server.steps == 30)
    one = server.ask(512, 8, "one")
    beside_flood = server.run(lambda: one not in server.ends)
    alone = Server()
    first, rival = alone.ask(1, 400, "rival"), alone.ask(512, 8, "one")
    whole = alone.run(lambda: rival not in alone.ends)
    assert first in alone.ends, "somebody decodes all the while, so steps are as short as beside the flood"
    assert whole < beside_flood <= 2 * whole + 2
    assert len(server.ends) > 90, "the flood was far from done"


def test_two_floods_share_the_tokens_evenly() -> None:
    """A hundred requests and ten get as many tokens, for as long as both have some; short prompts or long."""
    server = Server()
    for number in range(100):
        server.ask(300, 20, "many")
        if number < 40:
            server.ask(75, 5, "few")
    server.run(lambda: all(s.tenant != "few" for s in server.scheduler.queues.waiting()))
    many, few = server.computed["many", ""], server.computed["few", ""]
    assert few > 2000
    assert abs(many - few) < 0.15 * (many + few)


def test_adapters_share_what_their_organisation_gets() -> None:
    """An organisation with three adapters gets no more than one with none, and its adapters a third of that each."""
    server = Server(slots=12)
    for _ in range(60):
        for adapter in ("x", "y", "z"):
            server.ask(200, 5, "three", adapter)
        server.ask(200, 5, "none")
    server.run(lambda: server.steps == 150)
    three = [server.computed["three", adapter] for adapter in ("x", "y", "z")]
    none, whole = server.computed["none", ""], sum(server.computed.values())
    assert abs(none - whole / 2) < 0.1 * whole
    assert all(abs(each - whole / 6) < 0.05 * whole for each in three)


def test_long_answers_of_one_give_half_of_the_slots_to_another() -> None:
    """Whoever holds all slots with answers that will not end soon makes place for another organisation until both get
    as many tokens; what gave way finds its blocks again."""
    server = Server(blocks=600)
    for _ in range(SLOTS):
        server.ask(64, 2000, "long")
    server.run(lambda: server.steps == 40)
    newcomers = [server.ask(64, 100, "new") for _ in range(20)]
    server.run(lambda: server.running(tenant="new") == SLOTS // 2)
    assert server.scheduler.preemptions == SLOTS // 2
    assert server.steps < 100
    before = server.computed.copy()
    server.run(lambda: not any(one in server.ends for one in newcomers[:-SLOTS]))
    given = server.computed - before
    assert abs(given["new", ""] - given["long", ""]) < 0.1 * sum(given.values())
    server.run(lambda: not any(one in server.ends for one in newcomers))
    server.run(lambda: server.running(tenant="long") == SLOTS)
    back = [sequence for sequence in server.scheduler.running if sequence.gave_way]
    assert len(back) >= SLOTS // 2
    assert all(sequence.found >= 64 for sequence in back)
    assert all(sequence.gave_way <= 3 for sequence in back), "they do not push each other out again and again"


def test_a_cache_full_of_one_makes_room_for_another() -> None:
    """Blocks are shared like slots: long prompts of one organisation do not keep out another's."""
    server = Server(blocks=64)
    for _ in range(3):
        server.ask(19 * BLOCK, 500, "large")
    server.run(lambda: server.running(tenant="large") == 3 and all(s.remaining == 1 for s in server.scheduler.running))
    small = server.ask(12 * BLOCK, 4, "small")
    server.run(lambda: small not in server.ends)
    assert server.steps < 100
    assert server.scheduler.preemptions >= 1


def test_the_higher_class_goes_first() -> None:
    """Of requests that wait, all of the higher class are admitted before those of a lower one."""
    server = Server()
    for _ in range(SLOTS):
        server.ask(64, 50)
    server.run(lambda: server.steps == 10)
    low = [server.ask(8, 5, priority=-1) for _ in range(4)]
    high = [server.ask(8, 5, priority=7) for _ in range(4)]
    server.run(lambda: not any(one in server.ends for one in high))
    assert all(one in server.ends for one in low)


def test_a_batch_makes_place_at_once() -> None:
    """A slot that a batch holds is no slot to wait for: whoever cannot wait is admitted in the next step."""
    server = Server()
    for _ in range(SLOTS):
        server.ask(64, 2000, priority=BATCH_PRIORITY)
    server.run(lambda: server.steps == 40)
    one = server.ask(32, 4)
    assert server.run(lambda: one not in server.ends) <= 5


def test_nobody_waits_for_ever() -> None:
    """While requests of the highest class keep every slot taken and more of them wait, one of each lower class is done
    all the same."""
    server = Server()
    lower = [server.ask(200, 30, f"t{priority}", priority=priority) for priority in (BATCH_PRIORITY, -3, 0)]

    def keep_busy() -> None:
        while server.scheduler.waiting < 20:
            server.ask(100, 20, priority=5)

    keep_busy()
    server.run(lambda: not any(one in server.ends for one in lower), keep_busy)
    assert all(one.gave_way <= 3 for one in lower)
    server.run(lambda: server.steps % 500 == 0, keep_busy)
    assert server.computed["", ""] > 0.8 * sum(server.computed.values())


@pytest.mark.parametrize("priority", [-1, 0])
def test_a_large_prompt_finds_its_room(priority: int) -> None:
    """A prompt that needs most of the cache is not passed over for ever by small ones that always fit."""
    server = Server(blocks=32)

    def keep_busy() -> None:
        while server.scheduler.waiting < 10:
            server.ask(60, 60, "small")

    keep_busy()
    server.run(lambda: server.steps == 20, keep_busy)
    large = server.ask(25 * BLOCK, 10, "large", priority=priority)
    server.run(lambda: large not in server.ends, keep_busy)
