"""Reading bodies: what it costs to say what is wrong with them."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from interlace.errors import InvalidRequest
from interlace.gateway.wire import LARGE_BYTES, Body, decode, read_beside

SOON = 1.0  # seconds; what grows with the square of the body takes minutes


class Plain(Body, frozen=True, kw_only=True):
    """A body with one field."""

    inner: dict[str, Any] = msgspec.field(default_factory=dict)
    number: int = 0


_decoder = msgspec.json.Decoder(Plain)


def refused(body: bytes) -> InvalidRequest:
    """How a body is refused, and that soon."""
    began = time.process_time()
    with pytest.raises(InvalidRequest) as caught:
        decode(body, _decoder)
    assert time.process_time() - began < SOON
    return caught.value


def test_a_key_twice_among_very_many() -> None:
    """Otherwise one body of a megabyte holds up every caller of the server for minutes."""
    keys = {f"k{i}": 1 for i in range(100_000)}
    error = refused(b'{"inner": ' + json.dumps(keys)[:-1].encode() + b', "k99999": 2}}')
    assert error.code == "duplicate_key"
    assert "'k99999'" in error.message


def test_a_field_whose_name_looks_like_places() -> None:
    """Otherwise the search for the place in the message of a very long name takes minutes."""
    error = refused(json.dumps({" - at " * 100_000: 1}).encode())
    assert error.code == "unknown_parameter"
    assert refused(json.dumps({" - at `$." * 100_000: 1}).encode()).status == 400


def test_the_place_is_still_told() -> None:
    """Otherwise callers are not told which field is wrong."""
    assert refused(b'{"number": "1"}').param == "number"
    assert refused(b'{"inner": 1}').param == "inner"
    assert refused(b'{"x - at y": 1}').param == "x - at y"


async def test_large_bodies_are_read_beside_the_loop() -> None:
    """Otherwise ten megabytes of small objects hold up every other caller for seconds; small bodies wait for nobody."""
    small, large = b"x", b"x" * (LARGE_BYTES + 1)
    assert await read_beside(small, threading.current_thread) is threading.main_thread()
    assert await read_beside(large, threading.current_thread) is not threading.main_thread()
    with pytest.raises(InvalidRequest):
        await read_beside(large, lambda: decode(large, _decoder))


class Pairs(list[tuple[str, Any]]):
    """An object, whose keys may stand twice."""


KEYS = st.sampled_from(["a", 'b":', "c\\"])
VALUES = st.recursive(
    st.none() | st.integers() | st.sampled_from(['":', ":", ":a"]) | st.text(alphabet='ab": \\\n{}[],', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(KEYS, inner), max_size=3).map(Pairs),
    max_leaves=12,
)


def written(value: Any, colon: str, spelt: str) -> str:
    """JSON text, with `colon` between key and value; the characters `spelt` of texts by their numbers."""
    if isinstance(value, Pairs):
        pairs = (f"{written(key, colon, spelt)}{colon}{written(one, colon, spelt)}" for key, one in value)
        return "{" + ",".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(written(one, colon, spelt) for one in value) + "]"
    if isinstance(value, str):
        return '"' + "".join(f"\\u{ord(one):04x}" if one in spelt else json.dumps(one)[1:-1] for one in value) + '"'
    return json.dumps(value)


def twice(value: Any) -> bool:
    """Whether any object has a key twice."""
    if isinstance(value, Pairs):
        return len({key for key, _ in value}) < len(value) or any(twice(one) for _, one in value)
    return isinstance(value, list) and any(map(twice, value))


@given(value=VALUES, colon=st.sampled_from([":", ": ", " :", "\n:\t", " : "]), spelt=st.sampled_from(["", '"', ":"]))
@example(value=Pairs([("a", 1), ("a", '":')]), colon=":", spelt='"')  # what is lost and what is gained are as many
@example(value=Pairs([("a", 1), ("a", ":")]), colon=":", spelt=":")
@settings(max_examples=300, deadline=None)
def test_a_key_that_stands_twice_is_refused_however_it_is_written(value: Any, colon: str, spelt: str) -> None:
    """A quick look may pass a body only where no key stands twice, whatever its texts hold."""
    body = written(value, colon, spelt).encode()
    decoder = msgspec.json.Decoder(Any)
    if twice(value):
        with pytest.raises(InvalidRequest, match="stands twice"):
            decode(body, decoder)
    else:
        decode(body, decoder)
