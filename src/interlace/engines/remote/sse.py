"""Server-sent events, read as they arrive: bytes in, the data of finished events out."""

from __future__ import annotations

from interlace.errors import EngineFailed

MOST_EVENT_BYTES = 4 << 20  # of one line, and of one event: a megabyte is far beyond what a chunk of an answer holds


class EventReader:
    """Follows the specification of `text/event-stream`: LF, CRLF and CR end a line; `data` lines of one event are
    joined by LF; comments and fields other than `data` are passed over.

    Raises `EngineFailed` once a line or an event is longer than `MOST_EVENT_BYTES`: whoever sends it must not fill our
    memory.
    """

    def __init__(self) -> None:
        self._partial = bytearray()  # the line that has not ended
        self._data: list[bytes] = []  # `data` lines of the event that has not ended
        self._size = 0
        self._after_cr = False
        self._first = True

    def feed(self, data: bytes) -> list[bytes]:
        """The data of every event that ended in these bytes."""
        if self._after_cr and data[:1] == b"\n":
            data = data[1:]
            self._after_cr = False
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        elif data:
            self._after_cr = False
        if b"\n" not in data:
            self._partial += data
            self._check(len(self._partial))
            return []
        if self._partial:
            data = bytes(self._partial) + data
            self._partial.clear()
        lines = data.split(b"\n")
        self._partial += lines.pop()
        self._check(len(self._partial))
        if self._first:
            self._first = False
            lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
        return self._events(lines)

    def end(self) -> list[bytes]:
        """The bytes have ended. The specification drops an event without its blank line; servers that forget the last
        one are common, so it counts here."""
        line = bytes(self._partial)
        self._partial.clear()
        return self._events([line, b""])

    def _events(self, lines: list[bytes]) -> list[bytes]:
        done: list[bytes] = []
        for line in lines:
            if line.startswith(b"data:"):
                value = line[6:] if line[5:6] == b" " else line[5:]
                self._size += len(value)
                self._check(self._size)
                self._data.append(value)
            elif not line and self._data:
                done.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
                self._data.clear()
                self._size = 0
        return done

    @staticmethod
    def _check(size: int) -> None:
        if size > MOST_EVENT_BYTES:
            raise EngineFailed("The server behind this model sent an endless line. Try again.")
