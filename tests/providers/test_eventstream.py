"""AWS's event streams: botocore's own reader and ours see the same messages."""

from __future__ import annotations

import struct
import zlib

import pytest
from botocore.eventstream import EventStreamBuffer

from interlace.engines.remote.providers.eventstream import EventStreamReader
from interlace.engines.remote.sse import MOST_EVENT_BYTES
from interlace.errors import EngineFailed
from tests.providers.servers.bedrock import frame_of


def message(headers: bytes, payload: bytes) -> bytes:
    """A message around raw headers."""
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    whole = prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + payload
    return whole + struct.pack(">I", zlib.crc32(whole))


def text(name: str, value: str) -> bytes:
    """A header that holds text."""
    return bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()


TWO = frame_of("messageStart", {"role": "assistant"}) + frame_of("throttlingException", {"message": "slow"})
TOLD = [b'{"messageStart":{"role": "assistant"}}', b'{"throttlingException":{"message": "slow"}}']


def test_botocore_reads_the_same() -> None:
    """What the tests call an event stream is one to AWS's own reader."""
    buffer = EventStreamBuffer()
    buffer.add_data(TWO)
    names = [event.headers.get(":event-type") or event.headers.get(":exception-type") for event in buffer]
    assert names == ["messageStart", "throttlingException"]


@pytest.mark.parametrize("size", [1, 2, 7, 11, 12, 13, 64, 10_000])
def test_messages_are_cut_anywhere(size: int) -> None:
    """Bytes come in pieces of any size; messages come out whole, once and in order."""
    reader = EventStreamReader()
    told = [payload for at in range(0, len(TWO), size) for payload in reader.feed(TWO[at : at + size])]
    assert told == TOLD
    assert reader.end() == []


@pytest.mark.parametrize("at", range(len(TWO)))
def test_a_flipped_bit_is_seen(at: int) -> None:
    """Whatever byte is damaged, the stream fails; nothing wrong is ever handed on."""
    damaged = bytearray(TWO)
    damaged[at] ^= 0x10
    reader = EventStreamReader()
    told: list[bytes] = []

    def read() -> None:
        for byte in bytes(damaged):
            told.extend(reader.feed(bytes([byte])))
        reader.end()

    with pytest.raises(EngineFailed):
        read()
    assert told in ([], TOLD[:1])


def test_a_message_that_is_cut_off_fails() -> None:
    """A stream that ends within a message is not a short one that ended well."""
    reader = EventStreamReader()
    reader.feed(TWO[:-1])
    with pytest.raises(EngineFailed, match="cut off"):
        reader.end()


@pytest.mark.parametrize("size", [0, 15, MOST_EVENT_BYTES + 1, 0xFFFFFFFF])
def test_impossible_lengths_fail_at_once(size: int) -> None:
    """A length that cannot be, or that would fill our memory, fails before anything is waited for."""
    prelude = struct.pack(">II", size, 0)
    with pytest.raises(EngineFailed, match="endless"):
        EventStreamReader().feed(prelude + struct.pack(">I", zlib.crc32(prelude)))


def test_headers_of_every_type_are_passed_over() -> None:
    """Headers may hold numbers, times and more; the ones that are text are found among them."""
    others = b"".join(
        bytes([1]) + b"h" + bytes([kind]) + value
        for kind, value in (
            (0, b""),
            (1, b""),
            (2, b"\x01"),
            (3, b"\x00\x01"),
            (4, bytes(4)),
            (5, bytes(8)),
            (6, b"\x00\x02ab"),
            (8, bytes(8)),
            (9, bytes(16)),
        )
    )
    headers = others + text(":message-type", "event") + text(":event-type", "metadata")
    assert EventStreamReader().feed(message(headers, b"{}")) == [b'{"metadata":{}}']


@pytest.mark.parametrize(
    "headers", [b"\x05ab", b"\x01h\x63", b"\x01h\x07\xff\xff", b"\x01h\x07", text("x", "y")[:-1], b"\xff"]
)
def test_headers_that_cannot_be_read_fail(headers: bytes) -> None:
    """Headers that end too early or are of no known type fail cleanly."""
    with pytest.raises(EngineFailed, match="headers"):
        EventStreamReader().feed(message(headers, b"{}"))


def test_a_name_cannot_break_out() -> None:
    """The name of an event is put into JSON of ours: one that is no plain word is passed over."""
    headers = text(":message-type", "event") + text(":event-type", 'a":1,"metadata')
    assert EventStreamReader().feed(message(headers, b"{}")) == []
