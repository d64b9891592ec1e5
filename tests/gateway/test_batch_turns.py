"""Whose line begins next."""

from __future__ import annotations

import asyncio

from interlace.gateway.batch_turns import Turns


def nothing() -> None:
    """Nobody hears."""


async def test_projects_take_turns() -> None:
    """Otherwise who leaves a hundred batches keeps everybody else waiting."""
    turns, order = Turns(nothing, nothing), []

    async def line(project: str) -> None:
        await turns.wait(project)
        order.append(project)

    tasks = [asyncio.create_task(line(project)) for project in "aaaaabbc"]
    await asyncio.sleep(0)
    while turns.give():
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert "".join(order) == "abcabaaa"


async def test_a_place_of_who_goes_away_is_not_lost() -> None:
    """Otherwise cancelled batches take place after place, until none is left; or leave something behind each time."""
    lost: list[int] = []
    turns = Turns(nothing, lambda: lost.append(1))
    given, waiting = (asyncio.create_task(turns.wait("a")) for _ in range(2))
    await asyncio.sleep(0)
    assert turns.give()
    given.cancel()
    waiting.cancel()
    assert not turns.give(), "the other one was cancelled just now"
    await asyncio.gather(given, waiting, return_exceptions=True)
    assert lost == [1]
    gone = asyncio.create_task(turns.wait("a"))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    assert turns._waiting == {}
