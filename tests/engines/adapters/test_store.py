"""Which adapters are in memory: the cap, who makes room, and that whoever races whom, each request keeps its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from interlace.engines.local.adapter_bank import Adapter
from interlace.engines.local.adapters import BROKEN_SECONDS, PATIENCE_SECONDS, AdapterStore, Ticket
from interlace.errors import CheckpointError, EngineFailed, NotFound
from interlace.models import Layers, LowRank

WAIT_SECONDS = 20.0
BYTES = 100


class Shelf:
    """A store whose adapters are 100 bytes each, with a clock of its own, and doors that hold loading up."""

    def __init__(self, room: int) -> None:
        self.now = 0.0
        self.read: list[str] = []
        self.door = threading.Event()
        self.door.set()
        self.store = AdapterStore(self._read, self._make, room * BYTES, lambda: self.now)

    def _read(self, folder: Path) -> Layers:
        self.read.append(folder.name)
        assert self.door.wait(WAIT_SECONDS)
        if folder.name.startswith("broken"):
            raise CheckpointError("it is broken")
        if folder.name.startswith("bug"):
            raise ZeroDivisionError
        return Layers(layer=LowRank(np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32)))

    def _make(self, name: str, serial: int, layers: Layers) -> Adapter:
        return Adapter(name, serial, {}, {layer: low.rank for layer, low in layers.items()}, BYTES)

    def add(self, *names: str) -> None:
        """Register folders of those names."""
        for name in names:
            self.store.register(name, Path(name))

    def have(self, name: str) -> Ticket:
        """A ticket that is decided."""
        ticket = self.store.ask(name)
        self.until(lambda: ticket.decided)
        return ticket

    def until(self, done: Callable[[], object]) -> None:
        """Return once that is so."""
        end = time.monotonic() + WAIT_SECONDS
        while not done():
            assert time.monotonic() < end
            self.store.wait(0.01)

    def settled(self) -> None:
        """Return once the loader has seen all that was sent so far: also one that is gone is told so in its turn."""
        self.add("mark")
        ticket = self.store.ask("mark")
        self.store.remove("mark")
        self.until(lambda: ticket.decided)


def test_loaded_once_and_shared() -> None:
    """Requests with the same adapter share one in memory; it is read from its folder once."""
    shelf = Shelf(room=2)
    shelf.add("a")
    first, second = shelf.have("a"), shelf.have("a")
    assert first.adapter is second.adapter is not None
    assert shelf.read == ["a"]


def test_longest_unused_makes_room() -> None:
    """With room for two, the third takes the place of the one used longest ago, not of the one loaded first."""
    shelf = Shelf(room=2)
    shelf.add("a", "b", "c")
    for name in ("a", "b", "a", "c", "a", "b"):
        assert shelf.have(name).adapter is not None
    assert shelf.read == ["a", "b", "c", "b"]


def test_used_ones_stay() -> None:
    """An adapter that a request has is never let go: another waits until one is given back, and is loaded only once."""
    shelf = Shelf(room=2)
    shelf.add("a", "b", "c")
    held = {name: shelf.have(name) for name in ("a", "b")}
    waiting = shelf.store.ask("c")
    shelf.settled()
    assert not waiting.decided
    assert shelf.have("a").adapter is held["a"].adapter
    del held["b"]
    shelf.until(lambda: waiting.decided)
    assert waiting.adapter is not None
    assert shelf.read.count("c") == 1
    assert shelf.have("a").adapter is held["a"].adapter


def test_patience_ends() -> None:
    """Those in memory cannot be used again and again for ever while another waits for room."""
    shelf = Shelf(room=1)
    shelf.add("a", "b")
    held = shelf.have("a")
    waiting = [shelf.store.ask("b")]
    shelf.settled()
    again = shelf.have("a")
    shelf.now += PATIENCE_SECONDS + 1
    late = shelf.store.ask("a")
    shelf.settled()
    assert not late.decided
    del held, again
    shelf.until(lambda: waiting[0].decided)
    assert waiting.pop().adapter is not None
    shelf.until(lambda: late.decided)
    assert late.adapter is not None


def test_a_crowd_of_one_organisations_keeps_nobody_elses_waiting() -> None:
    """While one organisation asks for a hundred adapters, each to be read, another's is read after two of them at most,
    also where it is asked for after all others; and the hundred come in their order."""
    shelf = Shelf(room=200)
    names = [f"a{number:03}" for number in range(100)]
    shelf.add(*names, "b0", "b1")
    shelf.door.clear()
    crowd = [shelf.store.ask(name, "crowd") for name in names]
    shelf.until(lambda: shelf.read)
    others = [shelf.store.ask(name, "other") for name in ("b0", "b1")]
    shelf.door.set()
    shelf.until(lambda: all(ticket.decided for ticket in (*crowd, *others)))
    assert shelf.read.index("b0") <= 1
    assert shelf.read.index("b1") <= 3
    assert [name for name in shelf.read if name.startswith("a")] == names


def test_who_waits_for_room_is_not_read_again_for_others() -> None:
    """Where nothing fits, two organisations with different adapters do not have each other's read over and over."""
    shelf = Shelf(room=1)
    shelf.add("a", "b", "c")
    held = [shelf.store.ask("a", "one")]
    shelf.until(lambda: held[0].decided)
    waiting = [shelf.store.ask("b", "one")]
    shelf.settled()
    waiting.append(shelf.store.ask("c", "other"))  # which has had less
    for _ in range(5):
        shelf.settled()
    assert shelf.read == ["a", "b"]
    held.clear()
    shelf.until(lambda: waiting[0].decided)
    del waiting[0]
    shelf.until(lambda: waiting[0].decided)
    assert shelf.read == ["a", "b", "c"]


def test_unknown() -> None:
    """A name that is not registered, or not any more, is refused at once."""
    shelf = Shelf(room=1)
    shelf.add("a")
    shelf.store.remove("a")
    for name in ("a", "b", "../a", ""):
        with pytest.raises(NotFound):
            shelf.store.ask(name)


def test_removed_while_used_and_while_waiting() -> None:
    """Who has an adapter keeps it when its name is removed; who still waits for it is told; its memory comes back."""
    shelf = Shelf(room=1)
    shelf.add("a", "b")
    held = shelf.have("a")
    waiting = shelf.store.ask("b")
    shelf.store.remove("a")
    shelf.store.remove("b")
    shelf.until(lambda: waiting.decided)
    assert isinstance(waiting.error, NotFound)
    assert held.adapter is not None
    shelf.add("c")
    waiting = shelf.store.ask("c")
    shelf.settled()
    assert not waiting.decided
    del held
    shelf.until(lambda: waiting.decided)
    assert waiting.adapter is not None


def test_another_folder_of_the_same_name() -> None:
    """A name given to another folder is another adapter: nobody gets the old one, but who has it keeps it."""
    shelf = Shelf(room=2)
    shelf.add("a")
    old = shelf.have("a")
    shelf.store.register("a", Path("a2"))
    new = shelf.have("a")
    assert old.adapter is not None
    assert new.adapter is not None
    assert new.adapter.serial != old.adapter.serial
    assert shelf.read == ["a", "a2"]


@pytest.mark.parametrize(("name", "says"), [("broken", "it is broken"), ("bug", "ZeroDivisionError")])
def test_broken_ones_fail_alone(name: str, says: str) -> None:
    """One that cannot be loaded fails whoever asks for it, names itself, is not read again at every turn, and does not
    hold up others; mended, it is served after a while."""
    shelf = Shelf(room=1)
    shelf.add(name, "a")
    for _ in range(3):
        ticket = shelf.have(name)
        assert isinstance(ticket.error, EngineFailed)
        assert name in ticket.error.message
        assert says in ticket.error.message
    assert shelf.read == [name]
    assert shelf.have("a").adapter is not None
    shelf.now += BROKEN_SECONDS + 1
    shelf.have(name)
    assert shelf.read == [name, "a", name]


def test_given_up_while_loading() -> None:
    """A request that ends before its adapter comes leaves no claim behind: the next one finds room."""
    shelf = Shelf(room=1)
    shelf.add("a", "b")
    shelf.door.clear()
    ticket = shelf.store.ask("a")
    shelf.until(lambda: shelf.read == ["a"])
    del ticket
    shelf.door.set()
    assert shelf.have("b").adapter is not None


def test_many_threads() -> None:
    """Eight threads that ask, hold and drop as they like, while names come and go, never exceed the room, never share
    an adapter of another name, and leave nothing in use."""
    shelf = Shelf(room=3)
    names = [f"n{number}" for number in range(8)]
    shelf.add(*names)
    wrong: list[str] = []

    def visit(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(60):
            name = names[int(random.integers(8))]
            if random.random() < 0.1:
                shelf.store.remove(name)
                shelf.store.register(name, Path(name))
                continue
            ticket = shelf.store.ask(name)
            while not ticket.decided:
                time.sleep(0.0005)
            if ticket.adapter is not None and ticket.adapter.name != name:
                wrong.append(name)

    threads = [threading.Thread(target=visit, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_SECONDS)
    assert not wrong
    assert [shelf.have(name).adapter is not None for name in names] == [True] * 8
    assert shelf.store.bytes_in_memory() <= 3 * BYTES
