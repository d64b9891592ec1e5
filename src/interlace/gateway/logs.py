"""JSON lines on standard error: one object a line, request ids in it, no prompt text and no keys."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from typing import Any, TextIO

import msgspec

from interlace.config import LogSettings

ACCESS = "interlace.access"
"""The logger that has a line for each request."""

ACCESS_SECONDS = 0.02  # that such a line waits for others

_encode = msgspec.json.Encoder(enc_hook=repr).encode


_access = logging.getLogger(ACCESS)
_BLANK = logging.LogRecord(ACCESS, logging.INFO, "", 0, "request", None, None).__dict__


def say_request(fields: dict[str, Any]) -> None:
    """A line for a request that is over. Its record is like the one before but for fields and time, so it is copied:
    to have `logging` make each takes twice as long."""
    if _access.isEnabledFor(logging.INFO):
        record = logging.LogRecord.__new__(logging.LogRecord)
        now = time.time()
        record.__dict__.update(_BLANK, fields=fields, created=now, msecs=now % 1 * 1000)
        _access.handle(record)


class JsonFormatter(logging.Formatter):
    """One record → one JSON object. What a call passes as `extra={"fields": {...}}` stands beside the message."""

    def __init__(self) -> None:
        super().__init__()
        self._second = (0, "")  # a second, and how it is written

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its newline."""
        line: dict[str, Any] = {
            "time": self._timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return _encode(line).decode()

    def _timestamp(self, seconds: float) -> str:
        whole = int(seconds)
        if whole != self._second[0]:
            self._second = (whole, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)))
        return f"{self._second[1]}.{int(seconds % 1 * 1000):03d}Z"


class Lines(logging.StreamHandler[TextIO]):
    """Writes lines. What says that a request is over, as thousands may in a second, waits for others for a moment and
    leaves with them; anything else leaves at once, and takes along what waits."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._waiting: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`, which holds the lock."""
        try:
            self._waiting.append(self.format(record))
            if record.levelno > logging.INFO or record.name != ACCESS or not self._flushes_later():
                self.flush()
        except Exception:  # noqa: BLE001 - as `logging` does: a line that cannot be written stops nobody
            self.handleError(record)

    def flush(self) -> None:
        """Write what waits."""
        with self.lock or contextlib.nullcontext():
            lines, self._waiting = self._waiting, []
            if lines:
                self.stream.write("\n".join(lines) + "\n")
            super().flush()

    def _flushes_later(self) -> bool:
        """Whether somebody will; who waits already has asked for it."""
        if len(self._waiting) > 1:
            return True
        try:
            asyncio.get_running_loop().call_later(ACCESS_SECONDS, self.flush)
        except RuntimeError:  # no loop runs here
            return False
        return True


def set_up_logs(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Send every logger of this process to standard error as JSON lines, ours at the level that is set."""
    handler = Lines(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    # What no line shows need not be found out, as logging's own advice has it; where in the source a line comes from
    # costs more than the rest.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)  # other libraries speak when something is wrong
    logging.getLogger("interlace").setLevel(settings.level.upper())
