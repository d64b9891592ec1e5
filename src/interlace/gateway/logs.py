"""JSON lines on standard error: one object a line, request ids in it, no prompt text and no keys."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, TextIO

import msgspec

from interlace.config import LogSettings

_encode = msgspec.json.Encoder(enc_hook=repr).encode


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


def set_up_logs(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Send every logger of this process to standard error as JSON lines, ours at the level that is set."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    # What no line shows need not be found out, as logging's own advice has it; where in the source a line comes from
    # costs more than the rest.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)  # other libraries speak when something is wrong
    logging.getLogger("interlace").setLevel(settings.level.upper())
