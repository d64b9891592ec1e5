"""The stepping thread of an engine host: the only one that drives the core and writes to the socket."""

from __future__ import annotations

import logging
import queue
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from interlace.engines.core import Core
from interlace.engines.host.protocol import Cancel, FrameError, Step, WireOutcome, encode_frame, wire_outcome
from interlace.engines.types import Embeddings, Outcome, Usage
from interlace.errors import EngineFailed, InterlaceError

log = logging.getLogger(__name__)

HEALTH_INTERVAL_SECONDS = 0.25


class CoreBroken(Exception):
    """`Core.step` raised. Its state cannot be trusted any more: the host exits, to be started afresh."""


@dataclass(slots=True)
class Job:
    """A request on its way to the core. `cancelled` is set by the reader, read by everyone after it."""

    id: str
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job that `Core.prepare` is done with: `value` for `Core.add`, or the error that refuses it."""

    job: Job
    value: Any = None
    error: InterlaceError | None = None


Note = Prepared | Cancel


class Stepper:
    """Turns of: take what came in, run one step, send all that came of it as one frame.

    `inbox` brings notes from the readers; `send` takes what a step brought to whoever asked, and may block (a gateway
    that does not read slows its own host down, nothing else). `clock` is monotonic, in seconds.
    """

    def __init__(
        self,
        core: Core,
        inbox: queue.SimpleQueue[Note],
        send: Callable[[Step], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._core = core
        self._inbox = inbox
        self._send = send
        self._clock = clock
        self._running: set[str] = set()  # added to the core, last outcome not seen yet
        self._outcomes: list[tuple[str, WireOutcome]] = []  # to go out with the next frame
        self._counters_stale = False  # something happened since the counters were last sent
        self._counters_due_at = clock()

    def run(self) -> None:
        """Turn after turn until `CoreBroken`, or `OSError` when the gateway is gone."""
        while True:
            self.turn()

    def turn(self) -> None:
        """One turn. Waits for a note when the core has no work, and then may return without a step."""
        self._take_notes()
        if self._outcomes or not self._core.has_work():
            self._flush()  # refusals need not wait for a step
        if self._core.has_work():
            self._step()
            self._flush()

    # --- notes ---

    def _take_notes(self) -> None:
        try:
            if not self._core.has_work():
                self._take(self._inbox.get(timeout=self._idle_seconds()))
            while True:
                self._take(self._inbox.get_nowait())
        except queue.Empty:
            pass

    def _idle_seconds(self) -> float | None:
        """How long to wait for a note: until the counters are due, for ever when nothing changed."""
        return max(0.0, self._counters_due_at - self._clock()) if self._counters_stale else None

    def _take(self, note: Note) -> None:
        if isinstance(note, Cancel):
            self._cancel(note.id)
        elif note.job.cancelled:
            pass
        elif note.error is not None:
            self._outcomes.append((note.job.id, wire_outcome(note.error)))
        else:
            self._add(note.job.id, note.value)

    def _cancel(self, id: str) -> None:
        if id in self._running:
            self._running.remove(id)
            self._core.cancel(id)
            self._counters_stale = True

    def _add(self, id: str, value: Any) -> None:
        try:
            self._core.add(value)
        except InterlaceError as error:
            self._outcomes.append((id, wire_outcome(error)))
        except Exception as error:  # noqa: BLE001 - a bug of the core; this request's neighbours need not pay for it
            self._core.cancel(id)
            self._outcomes.append((id, wire_outcome(bug("taking on", error))))
        else:
            self._running.add(id)
            self._counters_stale = True

    # --- steps ---

    def _step(self) -> None:
        try:
            outcomes = self._core.step()
        except Exception as error:
            failure = wire_outcome(bug("running", error))
            self._outcomes += [(id, failure) for id in self._running]
            self._flush()
            raise CoreBroken from error
        self._counters_stale = True
        for id, outcome in outcomes:
            if id in self._running:
                self._note_outcome(id, outcome)

    def _note_outcome(self, id: str, outcome: Outcome) -> None:
        if isinstance(outcome, (Usage, Embeddings, InterlaceError)):
            self._running.remove(id)
        self._outcomes.append((id, wire_outcome(outcome)))

    # --- frames ---

    def _flush(self) -> None:
        """Send the outcomes gathered, with the counters where they are due."""
        health = None
        if self._counters_stale and self._clock() >= self._counters_due_at:
            health = self._core.health()
            self._counters_stale = False
            self._counters_due_at = self._clock() + HEALTH_INTERVAL_SECONDS
        if self._outcomes or health is not None:
            outcomes, self._outcomes = self._outcomes, []
            self._send(Step(outcomes, health))


def step_frames(step: Step) -> list[bytearray]:
    """`step` as one frame; as several where it is over the bound.

    An outcome that is over it alone, or cannot be carried (a lone surrogate), becomes a failure of its request.
    """
    try:
        return [encode_frame(step)]
    except FrameError as error:
        if len(step.outcomes) > 1:
            middle = len(step.outcomes) // 2
            return step_frames(Step(step.outcomes[:middle], step.health)) + step_frames(Step(step.outcomes[middle:]))
        (id, _), *_ = step.outcomes
        failure = wire_outcome(EngineFailed(f"the engine made an answer that cannot be sent: {error}"))
        return [encode_frame(Step([(id, failure)], step.health))]


def bug(doing: str, error: Exception) -> EngineFailed:
    """What a caller is told of an exception that is no `InterlaceError`; where it came from goes to the log.

    Neither gets the exception's own message, which may hold words of a prompt.
    """
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error("%s while %s a request:\n%s", type(error).__name__, doing, where)
    return EngineFailed(f"the engine failed while {doing} the request ({type(error).__name__}); its log says more")
