"""What worker and coordinator say to each other: frames over a Unix socket, one msgpack array each.

    worker → coordinator   ["hello", worker, pid, epoch, batches]  first; once more after every new connection
                           ["events", [[usage, beside, draws], …]] to be recorded; told again until they are durable
                           ["question", number, name, body]        gets one "answer" with that number
                           ["shout", topic, body]                  passed on to all other workers
                           ["polled", number, body]                the answer to a "poll"
                           ["living", [load, …]]                   loads of the configuration it has requests under
    coordinator → worker   ["welcome", …]                          all it needs to begin, or to go on
                           ["durable", [id, …]]                    of usage events
                           ["answer", number, body, failure]
                           ["changed", organisations, …]           entries of the directory
                           ["load", number, settings]              serve by these from now on
                           ["trouble", text or nil]                whether usage can be recorded
                           ["engine", name, health, capabilities]  how a local model's host is
                           ["shout", topic, body]
                           ["recall", [[account, nanos], …]]       leases that are to come back as far as they are free
                           ["poll", number, name, body]            gets one "polled" with that number
                           ["closed"]                              the bank closed it: it is to take on nothing, and end
                           ["batches", yes]                        whether this worker runs them

Frames are those of an engine host (four bytes of length, little-endian). Neither side trusts the network with them: the
socket lies in a folder that only its owner can enter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from interlace.config import Settings
from interlace.engines.host import Failure, FrameError, frame_of
from interlace.engines.types import Capabilities, Health
from interlace.ledger import Key, Organisation, Plan, Price, Project, UsageEvent
from interlace.ledger.book import AccountKey
from interlace.ledger.escrow import Draws, Worker


class Message(msgspec.Struct, frozen=True, array_like=True):
    """Base of all messages."""


class Hello(Message, frozen=True, tag="hello"):
    """Who this is. `epoch` 0: it has just begun, and has no leases. `batches`: it runs them, by the word of a
    coordinator before."""

    worker: str
    pid: int
    epoch: int = 0
    batches: bool = False


class Beside(msgspec.Struct, frozen=True, array_like=True):
    """A statement of ours, as the database takes it, and the values of its parameters."""

    sql: str
    values: list[Any] | dict[str, Any]


class Events(Message, frozen=True, tag="events"):
    """Usage events, each with what is written and drawn from leases in its transaction."""

    items: list[tuple[UsageEvent, list[Beside], Draws | None]]


class Question(Message, frozen=True, tag="question"):
    """Something to be answered; `body` is as the question of that name has it."""

    number: int
    name: str
    body: msgspec.Raw


class Shout(Message, frozen=True, tag="shout"):
    """News that all workers should know."""

    topic: str
    body: msgspec.Raw


class Living(Message, frozen=True, tag="living"):
    """Loads of the configuration that requests run under, the current one last."""

    loads: list[int]


class EngineState(Message, frozen=True, tag="engine"):
    """How a local model's host is. `socket`: its name in the run folder, a new one for each load that changes it."""

    name: str
    socket: str
    health: Health
    capabilities: Capabilities | None


class Poll(Message, frozen=True, tag="poll"):
    """A question to a worker, which answers `Polled` with that number."""

    number: int
    name: str
    body: msgspec.Raw


class Polled(Message, frozen=True, tag="polled"):
    """The answer of a worker."""

    number: int
    body: msgspec.Raw


class Recall(Message, frozen=True, tag="recall"):
    """What requests at other workers lack that have waited longer, of each account; of all others, nothing."""

    wanted: list[tuple[AccountKey, int]]


class Closed(Message, frozen=True, tag="closed"):
    """The bank has closed this worker: its leases are others' now, and it is to end."""


class Welcome(Message, frozen=True, tag="welcome"):
    """All that a worker needs to begin, or to go on. `holdings`: what was granted to it of each account."""

    worker: Worker
    holdings: list[tuple[AccountKey, int]]
    load: int
    settings: Settings
    trouble: str | None
    engines: list[EngineState]
    batches: bool


class Durable(Message, frozen=True, tag="durable"):
    """Ids of usage events that are committed."""

    ids: list[str]


class Answer(Message, frozen=True, tag="answer"):
    """To a question: a body, or why there is none."""

    number: int
    body: msgspec.Raw
    failure: Failure | None = None


class Changed(Message, frozen=True, tag="changed"):
    """Entries of the directory that are new or different."""

    organisations: list[Organisation] = []
    projects: list[Project] = []
    plans: list[Plan] = []
    keys: list[Key] = []
    prices: list[Price] = []


class NewLoad(Message, frozen=True, tag="load"):
    """The configuration was read again; its engines are ready."""

    number: int
    settings: Settings


class Trouble(Message, frozen=True, tag="trouble"):
    """Why usage cannot be recorded now; None: it can."""

    text: str | None


class Batches(Message, frozen=True, tag="batches"):
    """Whether this worker runs batches."""

    yes: bool


ToCoordinator = Hello | Events | Question | Shout | Living | Polled
ToWorker = (
    Welcome | Durable | Answer | Changed | NewLoad | Trouble | EngineState | Shout | Batches | Recall | Closed | Poll
)


def _encode_path(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} has no place in a message")


def _decode_path(kind: type, value: object) -> object:
    if issubclass(kind, Path):
        return Path(str(value))
    raise NotImplementedError(kind.__name__)


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_path)
_to_coordinator: msgspec.msgpack.Decoder[ToCoordinator] = msgspec.msgpack.Decoder(ToCoordinator, dec_hook=_decode_path)
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker, dec_hook=_decode_path)
NOTHING = msgspec.Raw(_encoder.encode(None))


def frame(message: ToCoordinator | ToWorker) -> bytearray:
    """The message as one frame; raises `FrameError` when it is too long."""
    return frame_of(_encoder, message)


def body_of(value: Any) -> msgspec.Raw:
    """A value as the body of a question, an answer or a shout."""
    return msgspec.Raw(_encoder.encode(value))


def read_body(body: msgspec.Raw, kind: Any) -> Any:
    """The value in a body; raises `FrameError`."""
    try:
        return msgspec.msgpack.decode(body, type=kind, dec_hook=_decode_path)
    except msgspec.DecodeError as error:
        raise FrameError(f"a body that cannot be read: {error}") from error


def to_coordinator(body: bytearray) -> ToCoordinator:
    """A worker's message; raises `FrameError`."""
    try:
        return _to_coordinator.decode(body)
    except msgspec.DecodeError as error:
        raise FrameError(f"not a message of a worker: {error}") from error


def to_worker(body: bytearray) -> ToWorker:
    """A message of the coordinator; raises `FrameError`."""
    try:
        return _to_worker.decode(body)
    except msgspec.DecodeError as error:
        raise FrameError(f"not a message of the coordinator: {error}") from error


def changed(entries: list[Any]) -> Changed:
    """The entries, by kind."""
    lists: dict[type, list[Any]] = {Organisation: [], Project: [], Plan: [], Key: [], Price: []}
    for entry in entries:
        lists[type(entry)].append(entry)
    return Changed(*lists.values())
