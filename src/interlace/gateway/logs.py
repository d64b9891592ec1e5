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

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its newline."""
        line: dict[str, Any] = {
            "time": _timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return _encode(line).decode()


def set_up_logs(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Send every logger of this process to standard error as JSON lines, ours at the level that is set."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)  # other libraries speak when something is wrong
    logging.getLogger("interlace").setLevel(settings.level.upper())


def _timestamp(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"
