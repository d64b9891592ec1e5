"""What a training process tells the one that started it: one JSON object a line."""

from __future__ import annotations

import msgspec

from interlace.tuning.hardware import Device


class Event(msgspec.Struct, frozen=True, tag_field="event", tag=str.lower):
    """Base of all."""


class Stage(Event, frozen=True):
    """What it does now, in words."""

    text: str


class Note(Event, frozen=True):
    """Something that the person should know."""

    text: str


class Step(Event, frozen=True):
    """A step of learning is done: its loss, and how the run goes on. `seconds_left` counts the learning alone."""

    step: int
    steps: int
    loss: float
    tokens_per_second: float
    seconds_left: float
    memory_bytes: int
    learning_rate: float = 0.0


class Held(Event, frozen=True):
    """The held-out examples were looked at after that step."""

    step: int
    loss: float
    best: bool


class Failed(Event, frozen=True):
    """The run has ended early; `kind` is for programs, `message` says what and what to change."""

    kind: str
    message: str


class Stopped(Event, frozen=True):
    """The run was asked to stop, and has kept this step."""

    step: int


class Counted(Event, frozen=True):
    """How many tokens the examples to learn from have, seen once, and their answers; and the GPU they would be learnt
    on."""

    tokens: int
    answers: int
    device: Device | None = None


class Trained(Event, frozen=True):
    """Several processes have learnt together to the end; one alone does the rest."""


class Finished(Event, frozen=True):
    """The adapter and the report lie in the run's folder."""


AnyEvent = Stage | Note | Step | Held | Counted | Failed | Stopped | Trained | Finished

_decoder = msgspec.json.Decoder(AnyEvent)


def decode(line: bytes) -> AnyEvent:
    """An event from its line; raises `msgspec.MsgspecError`."""
    event: AnyEvent = _decoder.decode(line)
    return event
