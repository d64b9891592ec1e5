"""The stepping thread, turn by turn, over the toy core."""

from __future__ import annotations

import queue
import socket

import pytest

from interlace.engines.host.protocol import (
    LENGTH_BYTES,
    Cancel,
    Failure,
    FrameReader,
    Step,
    decode_from_host,
    decode_to_host,
    encode_request,
)
from interlace.engines.host.server import Reader, Sender, find_core
from interlace.engines.host.stepper import CoreBroken, Job, Note, Prepared, Stepper, step_frames
from interlace.engines.types import EmbedRequest, GenerateRequest
from interlace.errors import InvalidRequest
from tests.support.toy_core import ToyCore


class Bench:
    """A stepper over a toy core, its inbox, what it sent, and a clock set by hand."""

    def __init__(self) -> None:
        self.core = ToyCore()
        self.inbox: queue.SimpleQueue[Note] = queue.SimpleQueue()
        self.frames: list[bytearray] = []
        self.now = 0.0
        self.stepper = Stepper(self.core, self.inbox, self._send, lambda: self.now)

    def _send(self, step: Step) -> None:
        self.frames.extend(step_frames(step))

    def add(self, id: str, prompt: str) -> Job:
        """Put a prepared request in the inbox."""
        job = Job(id)
        self.inbox.put(Prepared(job, self.core.prepare(GenerateRequest(id, prompt=prompt))))
        return job

    def steps(self) -> list[Step]:
        """What was sent."""
        decoded = [decode_from_host(f[LENGTH_BYTES:]) for f in self.frames]
        return [d for d in decoded if isinstance(d, Step)]


def test_a_step_of_many_streams_is_one_frame() -> None:
    """All outcomes of one step leave together: one system call for 32 streams."""
    bench = Bench()
    for n in range(32):
        bench.add(str(n), "endless")
    bench.stepper.turn()
    (step,) = bench.steps()
    assert {id for id, _ in step.outcomes} == {str(n) for n in range(32)}


def test_a_cancel_takes_effect_before_the_next_step() -> None:
    """Nothing is computed for a request once its cancel has come in, and its neighbour goes on."""
    bench = Bench()
    bench.add("a", "endless")
    bench.add("b", "endless")
    bench.stepper.turn()
    bench.inbox.put(Cancel("a"))
    bench.stepper.turn()
    assert bench.core.cancelled == {"a": 1}
    assert bench.core.runs["b"].made == 2


def test_a_job_cancelled_on_its_way_is_never_added() -> None:
    """A cancel that overtook the preparation holds when the job comes out of it; so does one right behind it."""
    bench = Bench()
    bench.add("a", "endless").cancelled = True
    bench.add("b", "endless")
    bench.inbox.put(Cancel("b"))
    bench.inbox.put(Cancel("unknown"))
    bench.stepper.turn()
    assert bench.core.runs == {}
    assert bench.core.cancelled == {"b": 0}


def test_a_step_that_raises_fails_all_that_ran_and_ends_the_stepper() -> None:
    """Each running request gets its own clean failure before the process gives up."""
    bench = Bench()
    bench.add("a", "endless")
    bench.add("b", "raise")
    with pytest.raises(CoreBroken):
        bench.stepper.turn()
    outcomes = dict(bench.steps()[-1].outcomes)
    assert {id: isinstance(o, Failure) and o.name for id, o in outcomes.items()} == {
        "a": "EngineFailed",
        "b": "EngineFailed",
    }


def test_counters_go_out_a_few_times_a_second_and_at_rest() -> None:
    """Between two reports lies a quarter of a second; the last one, of an idle core, comes without being asked."""
    bench = Bench()
    bench.add("a", "count 4")
    for bench.now in (0.0, 0.1, 0.2, 0.22):
        bench.stepper.turn()
    assert [s.health.running for s in bench.steps() if s.health] == [1]
    bench.now = 0.25
    bench.stepper.turn()
    assert [s.health.running for s in bench.steps() if s.health] == [1, 0]


def test_a_factory_is_named_by_module_and_function() -> None:
    """Anything but package.module:function is refused before it is imported."""
    assert find_core("tests.support.toy_core:load_toy_core").__name__ == "load_toy_core"
    for spec in ("os", "os:", "os:path.join", "../x:y", "a b:c"):
        with pytest.raises(ValueError, match=r"package\.module:function"):
            find_core(spec)


def test_a_reader_marks_a_job_that_its_cancel_overtook() -> None:
    """The reader tells the preparers' job, and passes the cancel on for a job that is past them."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader = Reader(ours, Sender(ours))
        job = reader._jobs["a"] = Job("a")
        reader.take(Cancel("a"))
        assert job.cancelled
        assert reader.inbox.get_nowait() == Cancel("a")


def test_a_count_that_cannot_be_told_is_a_failure_not_silence() -> None:
    """An error whose words cannot be carried (a lone surrogate) still answers the question."""

    class Core(ToyCore):
        def count(self, request: GenerateRequest | EmbedRequest) -> int:
            raise InvalidRequest("\ud800")

    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(30)
        reader = Reader(ours, Sender(ours))
        reader.core = Core()
        (body,) = FrameReader().feed(bytes(encode_request("a", GenerateRequest("a", prompt="x"), count=True)))
        reader.take(decode_to_host(body))
        (answer,) = FrameReader().feed(theirs.recv(1 << 16))
        told = decode_from_host(answer)
        assert isinstance(told, Step)
        assert [(id, type(outcome)) for id, outcome in told.outcomes] == [("a", Failure)]
