"""A run in TensorBoard's event files: `tensorboard --logdir HOME/tuning` shows all runs by their names."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from interlace.tuning.folder import RunFolder, write_whole

_MARK = "tensorboard.json"


class TensorBoard:
    """Events cannot be taken back, but a reader is told from which step on they count no more. So a mark beside them
    says up to which step all is on disk; a run that goes on has everything after it count no more, and writes it again.
    """

    def __init__(self, folder: RunFolder, settings: Mapping[str, str], about: Mapping[str, str]) -> None:
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter  # it has no thread: what is flushed is on disk
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._event, self._scalar = Event, summary.scalar
        self._mark = folder.path / _MARK
        known = _read(self._mark)
        self._kept = self._step = known or 0
        place = folder.path / "tensorboard"
        place.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(place / "events"), f".{self._kept}")
        again = self._kept + 1
        self._write(again, session_log=SessionLog(status=SessionLog.START))
        if known is None:
            self._write(0, summary=summary.text("settings", _table(settings)))
            self._write(0, summary=summary.text("about", _table(about)))

    def last(self, name: str) -> int:
        """Of all figures alike."""
        del name
        return self._kept

    def put(self, figures: Mapping[str, float], step: int) -> None:
        """A later step says that those before are whole."""
        if step > self._step:
            self._keep(self._step)
            self._step = step
        for name, value in figures.items():
            self._write(step, summary=self._scalar(name, value))

    def end(self, how: str) -> None:
        """All is on disk; of a run that has not come to its end, the last step may lack a figure."""
        self._keep(self._step if how == "FINISHED" else max(self._step - 1, self._kept))
        self._writer.close()

    def _write(self, step: int, **what: Any) -> None:
        self._writer.write_event(self._event(wall_time=time.time(), step=step, **what))

    def _keep(self, step: int) -> None:
        self._writer.flush()
        self._kept = step
        write_whole(self._mark, self._kept)


def _read(mark: Path) -> int | None:
    try:
        return msgspec.json.decode(mark.read_bytes(), type=int)
    except (OSError, msgspec.MsgspecError):
        return None


def _table(rows: Mapping[str, str]) -> str:
    cells = (f"| {name} | {' '.join(value.split()).replace('|', '/')} |" for name, value in rows.items())
    return "\n".join(("| | |", "|---|---|", *cells))
