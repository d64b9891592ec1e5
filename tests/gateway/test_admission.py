"""Who gets the gateway's places: organisations as many each, whoever asks more, and their models within that."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlace.errors import Overloaded
from interlace.gateway.admission import Admission


class _Crowd:
    """Requests that hold their slot until they are told to go."""

    def __init__(self, concurrency: int, queue: int) -> None:
        self.admission = Admission(concurrency, queue)
        self.inside: list[tuple[str, str, asyncio.Event]] = []  # in the order they came in
        self.refused: Counter[str] = Counter()
        self.tasks: list[asyncio.Task[None]] = []

    async def come(self, organisation: str, model: str = "m", priority: int = 0, times: int = 1) -> None:
        """So many come, one after the other."""
        for _ in range(times):
            self.tasks.append(asyncio.create_task(self._one(organisation, model, priority)))
            await _settled()

    async def go(self, number: int = 0) -> None:
        """Of those that run, this one ends."""
        self.inside[number][2].set()
        await _settled()

    async def end(self) -> None:
        """All end, one after the other."""
        while self.inside:
            await self.go()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def held(self) -> Counter[str]:
        """How many run of each organisation."""
        return Counter(organisation for organisation, _, _ in self.inside)

    async def _one(self, organisation: str, model: str, priority: int) -> None:
        event = asyncio.Event()
        try:
            async with self.admission.slot(priority, organisation, model):
                entry = (organisation, model, event)
                self.inside.append(entry)
                try:
                    await event.wait()
                finally:
                    self.inside.remove(entry)
        except Overloaded:
            self.refused[organisation] += 1


async def _settled() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


async def test_places_are_shared_equally_whoever_asks_more() -> None:
    """As those of a flood end, their places go to the others that wait, until each organisation holds as many; else
    whoever asks most would have most."""
    crowd = _Crowd(concurrency=6, queue=100)
    await crowd.come("flood", times=60)
    await crowd.come("b", times=5)
    await crowd.come("c", times=5)
    for _ in range(4):
        await crowd.go(next(at for at, (who, _, _) in enumerate(crowd.inside) if who == "flood"))
    assert crowd.held() == {"flood": 2, "b": 2, "c": 2}
    assert not crowd.refused
    await crowd.end()


async def test_with_one_place_they_take_turns() -> None:
    """Where all hold as few, the one that was served longest ago is next, not the one that asked first."""
    crowd, order = _Crowd(concurrency=1, queue=100), []
    await crowd.come("flood", times=5)
    await crowd.come("b", times=2)
    while crowd.inside:
        order.append(crowd.inside[0][0])
        await crowd.go()
    assert order == ["flood", "b", "flood", "b", "flood", "flood", "flood"]


async def test_nobody_gets_more_by_naming_many_models() -> None:
    """Each of a hundred adapters holds few places; it is their organisation's that count first, also where all hold as
    few and take turns."""
    crowd = _Crowd(concurrency=6, queue=100)
    for number in range(20):
        await crowd.come("many", f"m{number}")
    await crowd.come("b", times=5)
    for _ in range(3):
        await crowd.go()
    assert crowd.held() == {"many": 3, "b": 3}
    await crowd.end()
    crowd, order = _Crowd(concurrency=1, queue=100), []
    for number in range(5):
        await crowd.come("many", f"m{number}")
    await crowd.come("b", times=2)
    while crowd.inside:
        order.append(crowd.inside[0][0])
        await crowd.go()
    assert order == ["many", "b", "many", "b", "many", "many", "many"]


async def test_models_of_one_organisation_share_what_it_has() -> None:
    """An adapter's flood keeps its own organisation's other adapters waiting no longer than another organisation's."""
    crowd = _Crowd(concurrency=4, queue=100)
    await crowd.come("a", "flood", times=20)
    await crowd.come("a", "quiet", times=3)
    for _ in range(2):
        await crowd.go()
    assert Counter(model for _, model, _ in crowd.inside) == {"flood": 2, "quiet": 2}
    await crowd.end()


async def test_the_greater_priority_goes_first_all_the_same() -> None:
    """A plan's priority is above the shares, as it is in the engine."""
    crowd = _Crowd(concurrency=2, queue=100)
    await crowd.come("a", times=2)
    await crowd.come("b", priority=0)
    await crowd.come("a", priority=1)
    await crowd.go()
    assert crowd.held() == {"a": 2}
    await crowd.end()


async def test_who_has_nothing_running_does_not_wait_for_others_to_end() -> None:
    """Callers can make their requests last: were all places theirs, another organisation would wait as long as they
    like. One each runs beside the slots, an eighth of them at most, and slots that come free make up for it."""
    crowd = _Crowd(concurrency=16, queue=100)
    await crowd.come("flood", times=40)
    for who in ("b", "b", "c", "d"):
        await crowd.come(who)
    assert crowd.held() == {"flood": 16, "b": 1, "c": 1}
    await crowd.go()  # of the flood
    assert crowd.held() == {"flood": 15, "b": 1, "c": 1, "d": 1}
    for _ in range(3):
        await crowd.go()
    assert crowd.held() == {"flood": 12, "b": 2, "c": 1, "d": 1}
    await crowd.end()
    assert crowd.admission.running == crowd.admission.waiting == 0


async def test_alone_nobody_has_more_than_the_slots() -> None:
    """What is for others is not for whoever holds slots already."""
    crowd = _Crowd(concurrency=16, queue=100)
    await crowd.come("flood", times=40)
    assert (len(crowd.inside), crowd.admission.waiting) == (16, 24)
    await crowd.end()


async def test_a_full_queue_is_full_for_those_who_fill_it() -> None:
    """The newcomer of another organisation takes the place of the last that waits of the flood, which is told to come
    back; until both have as many. A flood never displaces anybody."""
    crowd = _Crowd(concurrency=1, queue=6)
    await crowd.come("flood", times=10)
    assert crowd.refused == {"flood": 3}
    await crowd.come("b", times=3)
    assert crowd.refused == {"flood": 6}
    await crowd.come("b")
    assert crowd.refused == {"flood": 6, "b": 1}
    await crowd.come("flood", times=5)
    assert crowd.refused == {"flood": 11, "b": 1}
    await crowd.come("c", times=2)
    assert crowd.refused["flood"] + crowd.refused["b"] == 14
    assert not crowd.refused["c"]
    assert crowd.admission.waiting == 6
    await crowd.end()


async def test_within_an_organisation_a_models_flood_gives_way_to_its_others() -> None:
    """The same among the adapters of one organisation."""
    crowd = _Crowd(concurrency=1, queue=4)
    await crowd.come("a", "flood", times=5)
    await crowd.come("a", "quiet", times=2)
    assert crowd.refused == {"a": 2}
    await crowd.come("a", "quiet")
    assert crowd.refused == {"a": 3}
    models = []
    while crowd.inside:
        models.append(crowd.inside[0][1])
        await crowd.go()
    assert models == ["flood", "quiet", "flood", "quiet", "flood"]


async def test_who_was_admitted_before_does_not_give_way() -> None:
    """A request that lent its place while it waited for a budget has been promised an answer."""
    admission = Admission(concurrency=1, queue=2)

    async def lends(gate: asyncio.Event, back: asyncio.Event) -> None:
        async with admission.slot(0, "flood", "m") as slot:
            async with slot.lent():
                await gate.wait()
            back.set()

    gate, back = asyncio.Event(), asyncio.Event()
    lender = asyncio.create_task(lends(gate, back))
    await _settled()
    crowd = _Crowd(concurrency=1, queue=2)
    crowd.admission = admission
    await crowd.come("flood", times=2)
    gate.set()
    await _settled()
    await crowd.come("b")
    assert (admission.waiting, crowd.refused) == (2, {"flood": 1}), "the last that waits is the lender, but it stays"
    await crowd.end()
    await lender
    assert back.is_set()


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(0, 6),
    st.lists(
        st.tuples(
            st.sampled_from(["come", "come", "go", "cancel", "resize"]), st.sampled_from("abc"), st.integers(0, 9)
        ),
        max_size=40,
    ),
)
def test_any_history(concurrency: int, queue: int, moves: list[tuple[str, str, int]]) -> None:
    """Whatever comes, goes, hangs up and is resized: never more than the slots and their eighth run, nobody waits
    while a slot is free, no more wait than may, all who stay are served or refused, and nothing is left at the end."""

    async def history() -> None:
        crowd = _Crowd(concurrency, queue)
        admission, slots = crowd.admission, concurrency
        most = slots + slots // 8
        for move, who, number in moves:
            if move == "come":
                await crowd.come(who, f"m{number % 2}", number % 3)
                assert admission.waiting <= max(queue, 0)
            elif move == "go" and crowd.inside:
                await crowd.go(number % len(crowd.inside))
            elif move == "cancel" and crowd.tasks:
                crowd.tasks[number % len(crowd.tasks)].cancel()
                if number % 2:  # else at once with what comes next
                    await _settled()
            elif move == "resize":
                slots = number + 1
                admission.resize(slots, queue)
                most = max(slots + slots // 8, len(crowd.inside))
            assert len(crowd.inside) <= max(most, len(crowd.inside) if move == "resize" else 0)
            most = max(slots + slots // 8, min(most, len(crowd.inside)))
            await _settled()
            assert not admission.waiting or admission.running >= slots
        await crowd.end()
        results: list[Any] = await asyncio.gather(*crowd.tasks, return_exceptions=True)
        assert all(one is None or isinstance(one, asyncio.CancelledError) for one in results)
        assert (admission.running, admission.waiting, admission._free) == (0, 0, slots)
        assert not admission._places._organisations

    asyncio.run(history())


async def test_cancelled_with_the_place_in_hand() -> None:
    """Who hangs up in the very moment in which it is given a place, or gives way, leaves the place to others."""
    admission = Admission(concurrency=1, queue=1)
    async with admission.slot(0, "a"):
        waiting = asyncio.create_task(admission.take(0))
        await _settled()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    async with asyncio.timeout(5), admission.slot(0, "b"):
        pass
    assert not admission._places._organisations
