"""AWS's event streams (`application/vnd.amazon.eventstream`), read as they arrive: bytes in, one JSON object for each
message out.

A message is its length, the length of its headers, a checksum of those two, the headers, a payload, and a checksum of
all of it; numbers are big-endian, checksums CRC-32. The payload of a message of type `event` comes out as
`{"EVENT-TYPE": PAYLOAD}`, that of an `exception` as `{"EXCEPTION-TYPE": PAYLOAD}`, which is how the service's own model
writes the members of the stream.
"""

from __future__ import annotations

import re
import struct
import zlib

import msgspec

from interlace.engines.remote.sse import MOST_EVENT_BYTES
from interlace.errors import EngineFailed

_PRELUDE_BYTES = 12
_LEAST_BYTES = _PRELUDE_BYTES + 4
_MOST_HEADER_BYTES = 128 << 10  # as the format says
_NAME = re.compile(rb"[A-Za-z][A-Za-z0-9]{0,63}")
_FIXED = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}  # bytes of a header's value, by its type
_COUNTED = {6, 7}  # bytes and text, after their length


class EventStreamReader:
    """Cuts a body into messages. Raises `EngineFailed` for a message whose checksums are wrong, that is longer than
    `MOST_EVENT_BYTES`, or that is cut off."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads of every message that ended in these bytes."""
        self._buffer += data
        payloads: list[bytes] = []
        at = 0
        while len(self._buffer) - at >= _PRELUDE_BYTES:
            size, headers, told = struct.unpack_from(">III", self._buffer, at)
            if zlib.crc32(self._buffer[at : at + 8]) != told:
                raise _broken("a wrong checksum")
            if not _LEAST_BYTES <= size <= MOST_EVENT_BYTES or headers > min(size - _LEAST_BYTES, _MOST_HEADER_BYTES):
                raise _broken("an endless message")
            if len(self._buffer) - at < size:
                break
            payloads += _payload(bytes(self._buffer[at : at + size]), headers)
            at += size
        del self._buffer[:at]
        return payloads

    def end(self) -> list[bytes]:
        """The bytes have ended; what is left is no message."""
        if self._buffer:
            raise _broken("a message that is cut off")
        return []


def _payload(message: bytes, headers: int) -> list[bytes]:
    """What a whole message brings: one payload, or none where it has no name."""
    if zlib.crc32(message[:-4]) != struct.unpack_from(">I", message, len(message) - 4)[0]:
        raise _broken("a wrong checksum")
    told = _headers(message[_PRELUDE_BYTES : _PRELUDE_BYTES + headers])
    body = message[_PRELUDE_BYTES + headers : -4]
    kind = told.get(b":message-type", b"event")
    if kind == b"error":  # not of the service's model: code and text stand in the headers
        code, text = (told.get(name, b"").decode("utf-8", "replace") for name in (b":error-code", b":error-message"))
        return [msgspec.json.encode({"error": {"code": code, "message": text}})]
    name = told.get(b":exception-type" if kind == b"exception" else b":event-type", b"")
    if not _NAME.fullmatch(name):
        return []
    return [b'{"' + name + b'":' + (body.strip() or b"{}") + b"}"]


def _headers(data: bytes) -> dict[bytes, bytes]:
    """The headers that hold text, by name."""
    found: dict[bytes, bytes] = {}
    at = 0
    try:
        while at < len(data):
            name_end = at + 1 + data[at]
            name, kind = data[at + 1 : name_end], data[name_end]
            at = name_end + 1
            if kind in _COUNTED:
                size = struct.unpack_from(">H", data, at)[0]
                at += 2
            else:
                size = _FIXED[kind]
            if at + size > len(data):
                raise _broken("headers that cannot be read")
            if kind == 7:
                found[name] = data[at : at + size]
            at += size
    except (IndexError, KeyError, struct.error):
        raise _broken("headers that cannot be read") from None
    return found


def _broken(what: str) -> EngineFailed:
    return EngineFailed(f"The server behind this model sent {what}. Try again.")
