"""Credentials that age: one fetch at a time, off the loop, ahead of the end."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from interlace.engines.remote import refreshing
from interlace.engines.remote.refreshing import Refreshing
from interlace.errors import EngineFailed, EngineUnavailable


class Source:
    """Hands out 1, 2, 3, ... that live for `life` seconds; None: for ever."""

    def __init__(self, life: float | None = 3600.0) -> None:
        self.life = life
        self.given = 0
        self.threads: set[int] = set()
        self.fails = False
        self.held_up = threading.Event()
        self.held_up.set()

    def __call__(self) -> tuple[int, float | None]:
        """The next one."""
        self.threads.add(threading.get_ident())
        assert self.held_up.wait(5)
        if self.fails:
            raise EngineFailed("no credentials")
        self.given += 1
        return self.given, None if self.life is None else time.time() + self.life


async def until(source: Source, given: int) -> None:
    """Wait until so many were handed out, and the one who asked has them."""
    for _ in range(500):
        if source.given == given:
            await asyncio.sleep(0.01)
            return
        await asyncio.sleep(0.01)
    raise AssertionError(source.given)


async def test_many_wait_for_one() -> None:
    """Requests at once share one fetch, on another thread, and later ones use what it brought."""
    source = Source()
    held = Refreshing(source)
    assert await asyncio.gather(*(held.get() for _ in range(20))) == [1] * 20
    assert await held.get() == 1
    assert threading.get_ident() not in source.threads


@pytest.mark.parametrize("life", [None, 3600.0])
async def test_what_lives_long_is_kept(life: float | None) -> None:
    """Nothing is fetched again while there is time."""
    source = Source(life)
    held = Refreshing(source)
    for _ in range(10):
        await held.get()
    assert source.given == 1


async def test_ahead_of_its_end_another_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Near its end the old one is handed out at once while the next one comes; then the next one is."""
    source = Source()
    held = Refreshing(source)
    await held.get()
    real = time.time
    monkeypatch.setattr(refreshing.time, "time", lambda: real() + 3600 - 100)
    source.held_up.clear()
    assert [await held.get() for _ in range(5)] == [1] * 5
    source.held_up.set()
    await until(source, 2)
    assert await held.get() == 2


async def test_one_that_cannot_be_fetched_ahead_leaves_the_old_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure behind the scenes costs no request while the old one is good, and is in the log; afterwards it does."""
    source = Source()
    held = Refreshing(source)
    await held.get()
    real = time.time
    source.fails = True
    monkeypatch.setattr(refreshing.time, "time", lambda: real() + 3600 - 100)
    assert await held.get() == 1
    for _ in range(500):
        if caplog.records:
            break
        await asyncio.sleep(0.01)
    assert "could not be fetched" in caplog.text
    assert await held.get() == 1
    monkeypatch.setattr(refreshing.time, "time", lambda: real() + 3600 - 5)
    with pytest.raises(EngineFailed, match="no credentials"):
        await held.get()
    source.fails = False
    assert await held.get() == 2


async def test_what_is_not_taken_is_forgotten() -> None:
    """After `forget` the next one waits for another."""
    held = Refreshing(Source())
    assert await held.get() == 1
    held.forget()
    assert await held.get() == 2


async def test_who_goes_away_takes_nothing_along() -> None:
    """A request that is cancelled while it waits does not end the fetch that others wait for."""
    source = Source()
    source.held_up.clear()
    held = Refreshing(source)
    first, second = (asyncio.create_task(held.get()) for _ in range(2))
    await asyncio.sleep(0.02)
    first.cancel()
    source.held_up.set()
    assert await second == 1


async def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not answer costs a request a bounded time."""
    monkeypatch.setattr(refreshing, "WAIT_SECONDS", 0.05)
    source = Source()
    source.held_up.clear()
    held = Refreshing(source)
    with pytest.raises(EngineUnavailable, match="vouches"):
        await held.get()
    source.held_up.set()
    assert await held.get() == 1
