"""Which adapters a model has, and which of them are in memory: loaded beside the engine's steps, the one used longest
ago making room.

Names are registered and removed from any thread. One thread of its own, the loader, does everything else, in the order
of the notes it is sent; so there is no lock, and nobody waits for a file but whoever asked for it. A request holds a
`Ticket` for its adapter from the beginning to its end, and what a ticket is out for is never let go, also where its
name is removed or given to another folder meanwhile.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from interlace.engines.local.adapter_bank import Adapter
from interlace.errors import CheckpointError, EngineFailed, InterlaceError, NotFound
from interlace.models import Layers

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 2.0  # how long adapters in memory may be used again and again while another waits for room
BROKEN_SECONDS = 10.0  # how long a broken adapter is taken to be broken still

Read = Callable[[Path], Layers]
"""A folder → the adapter in it; raises `CheckpointError`."""
Make = Callable[[str, int, Layers], Adapter]
"""Name, serial and layers → the adapter as the graph wants it; may compile a graph, and takes its time."""


@dataclass(frozen=True, slots=True, eq=False)
class _Registration:
    name: str
    folder: Path
    serial: int  # of the adapter that is read from it


class Ticket:
    """A claim on an adapter. `adapter` or `error` is set once it is decided; dropping the ticket gives the claim up."""

    __slots__ = ("__weakref__", "_give_back", "adapter", "asked_at", "error", "registration", "tenant")

    def __init__(
        self, registration: _Registration, tenant: str, asked_at: float, give_back: Callable[[int], None]
    ) -> None:
        self.registration = registration
        self.tenant = tenant
        self.asked_at = asked_at
        self.adapter: Adapter | None = None
        self.error: InterlaceError | None = None
        self._give_back = give_back

    @property
    def decided(self) -> bool:
        """Whether there is an adapter, or an error."""
        return self.adapter is not None or self.error is not None

    def __del__(self) -> None:
        if self.adapter is not None:
            self._give_back(self.adapter.serial)  # a put into a SimpleQueue, which destructors may do


@dataclass(slots=True)
class _Resident:
    adapter: Adapter
    users: int = 0


@dataclass(frozen=True, slots=True)
class _GivenBack:
    serial: int


@dataclass(frozen=True, slots=True)
class _End:
    pass


_Note = weakref.ref[Ticket] | _GivenBack | _End | None


class AdapterStore:
    """The adapters of one model; `most_bytes` bounds those in memory, but for one that is waiting to fit."""

    def __init__(self, read: Read, make: Make, most_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._make = make
        self._most_bytes = most_bytes
        self._clock = clock
        self._registered: dict[str, _Registration] = {}
        self._serials = itertools.count(1)
        self._notes: queue.SimpleQueue[_Note] = queue.SimpleQueue()
        self._decided = threading.Event()
        # From here on the loader's alone.
        self._resident: OrderedDict[int, _Resident] = OrderedDict()  # by serial, the one used longest ago first
        self._waiting: deque[weakref.ref[Ticket]] = deque()
        self._unfitting: Adapter | None = None  # loaded for the first of those that wait, until there is room
        self._broken: dict[int, tuple[float, InterlaceError]] = {}
        self._loaded_last: dict[str, int] = {}  # for each organisation, the number of the load that was its last
        self.loads = 0
        # The loader does not keep the store, and so not the model, in memory: it ends when nobody else does either.
        weakref.finalize(self, self._notes.put, _End())
        loader = threading.Thread(target=_load, args=(weakref.ref(self), self._notes), daemon=True)
        loader.name = "adapter loader"
        loader.start()

    # --- from any thread -------------------------------------------------------------------------------------

    def register(self, name: str, folder: Path) -> None:
        """From now on `name` is the adapter in `folder`, which is read when it is first asked for."""
        self._registered[name] = _Registration(name, folder, next(self._serials))
        self._notes.put(None)

    def remove(self, name: str) -> None:
        """From now on there is no adapter of that name; requests that have one keep it."""
        self._registered.pop(name, None)
        self._notes.put(None)

    def names(self) -> list[str]:
        """The registered names, sorted."""
        return sorted(self._registered)

    def ask(self, name: str, tenant: str = "") -> Ticket:
        """A ticket for that adapter, decided soon; raises `NotFound`. `tenant`: for which organisation."""
        registration = self._registered.get(name)
        if registration is None:
            raise _unknown(name)
        ticket = Ticket(registration, tenant, self._clock(), self._was_given_back)
        self._notes.put(weakref.ref(ticket))
        return ticket

    def wait(self, seconds: float) -> None:
        """Return once a ticket has been decided since the last call, or after that time."""
        self._decided.wait(seconds)
        self._decided.clear()

    def bytes_in_memory(self) -> int:
        """What the adapters in memory take, as the loader last left it."""
        return sum(one.adapter.bytes for one in list(self._resident.values()))

    def _was_given_back(self, serial: int) -> None:
        self._notes.put(_GivenBack(serial))

    # --- the loader ------------------------------------------------------------------------------------------

    def work(self, note: _Note) -> None:
        """One round of the loader: that note and those that come meanwhile, until nothing is left to load."""
        self._take(note)
        loaded = True
        while loaded:
            while not self._notes.empty():
                self._take(self._notes.get())
            self._let_go_of_removed()
            loaded = self._serve()

    def _take(self, note: _Note) -> None:
        if isinstance(note, _GivenBack):
            self._resident[note.serial].users -= 1
        elif isinstance(note, weakref.ref):
            self._waiting.append(note)

    def _let_go_of_removed(self) -> None:
        """Forget what nobody uses and no name leads to any more."""
        named = {registration.serial for registration in list(self._registered.values())}
        for serial in [s for s, one in self._resident.items() if not one.users and s not in named]:
            del self._resident[serial]
        for serial in self._broken.keys() - named:
            del self._broken[serial]

    def _serve(self) -> bool:
        """Decide all tickets that can be, in their order. What is in memory is given out at once, unless somebody has
        been waiting for room for too long. One adapter is read at most, so that whoever asks meanwhile has a turn
        before the next; returns whether one was."""
        still: deque[weakref.ref[Ticket]] = deque()
        full = patience_ended = False
        loads = self.loads
        waiting = deque(sorted(self._waiting, key=self._order))
        while waiting:
            reference = waiting.popleft()
            ticket = reference()
            if ticket is None:
                continue
            served = self._refuse(ticket) or (not patience_ended and self._give(ticket))
            if not served and not full and self.loads == loads:
                served = self._load(ticket)
                full = not served
                patience_ended |= full and self._clock() - ticket.asked_at > PATIENCE_SECONDS
            if not served:
                still.append(reference)
            del ticket  # its last user may have gone meanwhile
        self._waiting = still
        return self.loads > loads

    def _order(self, reference: weakref.ref[Ticket]) -> tuple[bool, int]:
        """First whoever waits for room with what is read already, then the organisation that had a load longest ago:
        one that uses a thousand adapters keeps nobody else's waiting. Within that, whoever came first."""
        ticket = reference()
        if ticket is None:
            return False, 0
        unfitting = self._unfitting is not None and self._unfitting.serial == ticket.registration.serial
        return not unfitting, self._loaded_last.get(ticket.tenant, 0)

    def _refuse(self, ticket: Ticket) -> bool:
        """Tell it where its name is gone, or its adapter known to be broken."""
        registration = ticket.registration
        if self._registered.get(registration.name) is not registration:
            self._decide(ticket, _unknown(registration.name))
            return True
        broken = self._broken.get(registration.serial)
        if broken and self._clock() - broken[0] < BROKEN_SECONDS:
            self._decide(ticket, broken[1])
            return True
        return False

    def _give(self, ticket: Ticket) -> bool:
        """Give out what is in memory."""
        serial = ticket.registration.serial
        if resident := self._resident.get(serial):
            resident.users += 1
            self._resident.move_to_end(serial)
            self._decide(ticket, resident.adapter)
            return True
        return False

    def _load(self, ticket: Ticket) -> bool:
        """Read the ticket's adapter and make room for it; False where all that is in memory is in use."""
        registration = ticket.registration
        if self._unfitting is None or self._unfitting.serial != registration.serial:
            self._unfitting = None
            try:
                self._unfitting = self._loaded(registration)
            except InterlaceError as error:
                self._loaded_last[ticket.tenant] = self.loads
                self._broken[registration.serial] = self._clock(), error
                self._decide(ticket, error)
                return True
        adapter = self._unfitting
        if not self._make_room(adapter.bytes):
            return False
        self._unfitting = None
        self._loaded_last[ticket.tenant] = self.loads
        self._resident[adapter.serial] = _Resident(adapter)
        return self._give(ticket)

    def _loaded(self, registration: _Registration) -> Adapter:
        self.loads += 1
        try:
            layers = self._read(registration.folder)
            return self._make(registration.name, registration.serial, layers)
        except CheckpointError as error:
            problem = f"The adapter {registration.name} cannot be loaded: {error.message}"
        except Exception as error:
            log.exception("adapter %s cannot be loaded", registration.name)
            problem = f"The adapter {registration.name} cannot be loaded ({type(error).__name__}); the log says more."
        log.warning("%s", problem)
        raise EngineFailed(problem)

    def _make_room(self, needed: int) -> bool:
        """Let go of the adapters used longest ago that nobody uses now, as far as needed."""
        used = sum(one.adapter.bytes for one in self._resident.values())
        idle = [serial for serial, one in self._resident.items() if not one.users]
        in_use = used - sum(self._resident[serial].adapter.bytes for serial in idle)
        if in_use and in_use + needed > self._most_bytes:  # one alone always fits: what is too large was not read
            return False
        for serial in idle:
            if used + needed <= self._most_bytes:
                break
            used -= self._resident.pop(serial).adapter.bytes
        return True

    def _decide(self, ticket: Ticket, outcome: Adapter | InterlaceError) -> None:
        if isinstance(outcome, Adapter):
            ticket.adapter = outcome
        else:
            ticket.error = outcome
        self._decided.set()


def _load(reference: weakref.ref[AdapterStore], notes: queue.SimpleQueue[_Note]) -> None:
    while not isinstance(note := notes.get(), _End):
        store = reference()
        if store is not None:
            store.work(note)
        del store, note  # while it waits


def _unknown(name: str) -> NotFound:
    return NotFound(f"The model has no adapter {name!r}.", param="model", code="model_not_found")
