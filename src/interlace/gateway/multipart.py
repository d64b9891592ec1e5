"""An uploaded form, `multipart/form-data`: short fields, and one file that goes to disk as it comes.

The parser is python-multipart's; here are its bounds. A body is read no faster than it is written, and no part of it is
kept in memory but the short fields.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.types import Receive, Scope

from interlace.errors import InvalidRequest, PayloadTooLarge
from interlace.gateway.http import ClientGone, header
from interlace.gateway.wire import UnsupportedMediaType

MOST_PARTS = 16
MOST_FIELD = 1024  # bytes of a short field
MOST_HEADERS, MOST_HEADER = 8, 2048  # of a part, and bytes of one
BYTES_A_SECOND = 32 << 10  # a caller that sends more slowly than that runs out of time


@dataclass
class Form:
    """What has arrived. `write` gets the file's bytes, in a thread of its own."""

    write: Callable[[Iterable[bytes]], None]
    arrived: Callable[[int], None]  # hears how many bytes were written; may raise
    most_bytes: int
    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None
    size: int = 0
    ended: bool = False
    _pieces: list[bytes] = field(default_factory=list)
    _parts: int = 0
    _name: str = ""
    _in_file: bool = False
    _value: bytearray = field(default_factory=bytearray)
    _header: tuple[bytearray, bytearray] = field(default_factory=lambda: (bytearray(), bytearray()))
    _disposition: bytes = b""

    # --- called by the parser ------------------------------------------------------------------------------------

    def part_begins(self) -> None:
        """A part."""
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise InvalidRequest(f"The form has more than {MOST_PARTS} parts.", code="invalid_form")
        self._disposition, self._value = b"", bytearray()

    def header_field(self, data: bytes, start: int, end: int) -> None:
        """Some of a header's name."""
        self._header[0].extend(data[start:end])

    def header_value(self, data: bytes, start: int, end: int) -> None:
        """Some of a header's value."""
        self._header[1].extend(data[start:end])

    def header_ends(self) -> None:
        """A header is whole."""
        if bytes(self._header[0]).lower() == b"content-disposition":
            self._disposition = bytes(self._header[1])
        self._header = (bytearray(), bytearray())

    def headers_end(self) -> None:
        """What the part is."""
        kind, options = parse_options_header(self._disposition)
        if kind != b"form-data" or b"name" not in options:
            raise InvalidRequest("A part of the form has no name.", code="invalid_form")
        self._name = options[b"name"].decode("utf-8", "replace")
        self._in_file = self._name == "file"
        if self._name in self.fields or (self._in_file and self.filename is not None):
            raise InvalidRequest(f"The form has two parts named {self._name[:50]!r}.", param=self._name[:50])
        if self._in_file:
            if b"filename" not in options:
                raise InvalidRequest("'file' must be a file, with a name.", param="file", code="invalid_type")
            self.filename = options[b"filename"].decode("utf-8", "replace")

    def part_data(self, data: bytes, start: int, end: int) -> None:
        """Some of the part."""
        if self._in_file:
            self.size += end - start
            if self.size > self.most_bytes:
                raise file_too_large(self.most_bytes)
            self._pieces.append(data[start:end])
        else:
            self._value.extend(data[start:end])
            if len(self._value) > MOST_FIELD:
                name = self._name[:50]
                raise InvalidRequest(f"The field {name!r} is longer than {MOST_FIELD} bytes.", param=name)

    def part_ends(self) -> None:
        """The part is whole."""
        if not self._in_file:
            self.fields[self._name] = self._value.decode("utf-8", "replace")

    def end(self) -> None:
        """The form is whole."""
        self.ended = True

    # --- to disk -------------------------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Write what has come of the file."""
        pieces, self._pieces = self._pieces, []
        if pieces:
            await asyncio.to_thread(self.write, pieces)
            self.arrived(sum(map(len, pieces)))


def file_too_large(most_bytes: int) -> PayloadTooLarge:
    """The file is larger than there is room for."""
    return PayloadTooLarge(
        f"The file is larger than there is room for: at most {most_bytes} bytes.", param="file", code="file_too_large"
    )


async def read_form(scope: Scope, receive: Receive, form: Form, first_seconds: float) -> None:
    """Read a whole form into `form`; raises `InvalidRequest` and its kin, and `ClientGone`.

    The caller has `first_seconds`, and a second more for every `BYTES_A_SECOND` that came.
    """
    parser = _parser(scope, form)
    loop = asyncio.get_running_loop()
    began, arrived, more = loop.time(), 0, True
    try:
        while more:
            async with asyncio.timeout_at(began + first_seconds + arrived / BYTES_A_SECOND):
                message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            body, more = message.get("body", b""), message.get("more_body", False)
            arrived += len(body)
            if arrived > form.size + MOST_PARTS * (MOST_FIELD + MOST_HEADERS * MOST_HEADER + 1024) + len(body):
                raise InvalidRequest("The form is mostly not a file.", code="invalid_form")
            parser.write(body)
            await form.flush()
    except TimeoutError:
        raise InvalidRequest("The form did not arrive in time.", code="body_timeout") from None
    except FormParserError as error:
        raise InvalidRequest(f"The form is not multipart/form-data: {error}.", code="invalid_form") from None
    if not form.ended:
        raise InvalidRequest("The form is cut off: its last boundary is missing.", code="invalid_form")


def _parser(scope: Scope, form: Form) -> MultipartParser:
    kind, options = parse_options_header(header(scope, b"content-type"))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise UnsupportedMediaType("A file is uploaded as 'multipart/form-data' with a boundary.")
    if header(scope, b"content-encoding") not in (None, b"", b"identity"):
        raise UnsupportedMediaType("The body must not be compressed: leave out 'Content-Encoding'.")
    try:
        return MultipartParser(
            options[b"boundary"],
            {
                "on_part_begin": form.part_begins,
                "on_header_field": form.header_field,
                "on_header_value": form.header_value,
                "on_header_end": form.header_ends,
                "on_headers_finished": form.headers_end,
                "on_part_data": form.part_data,
                "on_part_end": form.part_ends,
                "on_end": form.end,
            },
            max_header_count=MOST_HEADERS,
            max_header_size=MOST_HEADER,
        )
    except FormParserError as error:
        raise InvalidRequest(f"The form is not multipart/form-data: {error}.", code="invalid_form") from None
