"""The wire: frames arrive whole however they are cut, bounds hold, errors and requests survive the trip."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace import errors
from interlace.engines.host.protocol import (
    LENGTH_BYTES,
    Cancel,
    Failure,
    FrameError,
    FrameReader,
    Step,
    Submit,
    decode_from_host,
    decode_request,
    decode_to_host,
    encode_frame,
    encode_request,
)
from interlace.engines.host.stepper import step_frames
from interlace.engines.types import Delta, EmbedRequest, GenerateRequest, Health, Sampling, TokenLogprob, Tool, Usage


def frame(body: bytes) -> bytes:
    """A frame around any body."""
    return len(body).to_bytes(LENGTH_BYTES, "little") + body


@given(st.lists(st.binary(max_size=300), max_size=8), st.lists(st.integers(0, 2000), max_size=20))
def test_frames_survive_any_cut(bodies: list[bytes], cuts: list[int]) -> None:
    """Whatever pieces the stream comes in, the same bodies come out, in order."""
    stream = b"".join(map(frame, bodies))
    edges = [0, *sorted(min(c, len(stream)) for c in cuts), len(stream)]
    reader = FrameReader()
    out = [body for a, b in itertools.pairwise(edges) for body in reader.feed(stream[a:b])]
    assert out == bodies


@given(st.binary(max_size=200))
def test_noise_gives_frames_or_a_frame_error(noise: bytes) -> None:
    """Bytes that are no frames end in `FrameError` or wait for more; nothing else comes out."""
    try:
        for body in FrameReader(limit=100).feed(noise):
            decode_to_host(body)
    except FrameError:
        pass


def test_a_length_over_the_limit_is_refused_before_its_body_comes() -> None:
    """The bound holds on the length alone, on the way in and on the way out."""
    with pytest.raises(FrameError, match="over the limit"):
        FrameReader(limit=10).feed((11).to_bytes(LENGTH_BYTES, "little"))
    with pytest.raises(FrameError, match="over the limit"):
        encode_frame(Cancel("x" * 20), limit=10)
    assert FrameReader(limit=10).feed(frame(b"x" * 10)) == [b"x" * 10]


@pytest.mark.parametrize("name", sorted(errors._tree(errors.InterlaceError)))
def test_every_error_crosses_with_all_its_parts(name: str) -> None:
    """Each class of the tree comes out as itself, with message, param, code and retry-after."""
    error = errors.error_named(name)("no", param="p", code="c", retry_after_seconds=1.5)
    step = decode_from_host(encode_frame(Step([("a", Failure.of(error))]))[LENGTH_BYTES:])
    assert isinstance(step, Step)
    failure = step.outcomes[0][1]
    assert isinstance(failure, Failure)
    again = failure.error()
    assert type(again) is type(error)
    assert vars(again) == vars(error)


def test_requests_and_outcomes_cross_unchanged() -> None:
    """A request with everything in it, and a step with counters, are equal on the other side."""
    request = GenerateRequest(
        "a", prompt="ü", sampling=Sampling(logit_bias={5: -1.5}), tools=(Tool("f", parameters={"x": [1, None]}),)
    )
    (body,) = FrameReader().feed(bytes(encode_request("a#1", request)))
    submit = decode_to_host(body)
    assert isinstance(submit, Submit)
    assert decode_request(submit) == msgspec.structs.replace(request, id="a#1")
    step = Step([("a", Delta(logprobs=(TokenLogprob(1, b"\xff", -0.5),))), ("b", Usage(1, 2))], Health("ready"))
    assert decode_from_host(encode_frame(step)[LENGTH_BYTES:]) == step


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (GenerateRequest("a", prompt="\ud800"), "prompt"),
        (GenerateRequest("a", prompt="x", sampling=Sampling(seed=1 << 70)), "seed"),
        (GenerateRequest("a", prompt="x", tools=(Tool("f", parameters={"maximum": 1 << 70}),)), "tools"),
        (EmbedRequest("a", texts=("\ud800",)), "texts"),
    ],
)
def test_a_value_that_cannot_be_carried_names_its_field(request_: Any, param: str) -> None:
    """Lone surrogates and huge integers, both of which JSON can say, are the caller's error."""
    with pytest.raises(errors.InvalidRequest) as caught:
        encode_request("a", request_)
    assert caught.value.param == param


def test_a_field_of_the_wrong_type_is_an_invalid_request() -> None:
    """The host refuses what is no request, as that request's own error."""
    body = msgspec.msgpack.encode({"id": "a", "sampling": {"temperature": "hot"}})
    with pytest.raises(errors.InvalidRequest, match="temperature"):
        decode_request(Submit("a", "generate", msgspec.Raw(body)))


def test_an_outcome_that_cannot_be_sent_costs_only_itself() -> None:
    """A lone surrogate in one delta becomes that request's failure; the others of the step go out as they are."""
    good = [(str(n), Delta(text="x")) for n in range(5)]
    frames = step_frames(Step([*good[:3], ("bad", Delta(text="\ud800")), *good[3:]], Health("ready")))
    steps = [decode_from_host(f[LENGTH_BYTES:]) for f in frames]
    outcomes = [o for s in steps if isinstance(s, Step) for o in s.outcomes]
    assert [o for o in outcomes if o[0] != "bad"] == good
    assert [type(o[1]) for o in outcomes if o[0] == "bad"] == [Failure]
    assert [s.health for s in steps if isinstance(s, Step) and s.health] == [Health("ready")]
