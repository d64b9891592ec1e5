"""A run in MLflow: where `MLFLOW_TRACKING_URI` says, else in a database in the home folder, which needs no network."""

from __future__ import annotations

import hashlib
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from interlace.tuning.folder import RunFolder, write_whole

# MLflow sends home how it is used, unless told not to; and it waits minutes for a server that is not there.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")

_EXPERIMENT = "interlace tune"
_STATE = "mlflow.json"
_SECONDS = 2.0  # between two writes
_MOST = 500  # figures in one write
_CHARACTERS = 5000


class _State(msgspec.Struct, frozen=True):
    """The run that goes on; `place` is the digest of where, which may have a password in it."""

    place: str
    run: str


class Mlflow:
    """MLflow keeps what it is given twice, so it is asked what it has."""

    def __init__(self, folder: RunFolder, settings: Mapping[str, str], about: Mapping[str, str]) -> None:
        with _quiet():
            from mlflow.entities import Metric, Param, RunTag
            from mlflow.tracking import MlflowClient

            self._metric = Metric
            where = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.runs / 'mlflow.db'}"
            self._client = MlflowClient(tracking_uri=where)
            state, place = folder.path / _STATE, hashlib.sha256(where.encode()).hexdigest()
            self._run = self._going_on(state, place)
            if not self._run:
                made = self._client.create_run(self._experiment(), run_name=folder.name)
                self._run = made.info.run_id
                self._client.log_batch(
                    self._run,
                    params=[Param(name, value[:_CHARACTERS]) for name, value in settings.items() if value],
                    tags=[RunTag(name, value[:_CHARACTERS]) for name, value in about.items()],
                )
                write_whole(state, _State(place, self._run))
        self._last: dict[str, int] = {}
        self._waiting: list[Any] = []
        self._written = time.monotonic()

    def last(self, name: str) -> int:
        """As the store has it, asked once."""
        if name not in self._last:
            with _quiet():
                kept = self._client.get_metric_history(self._run, name)
            self._last[name] = max((one.step for one in kept), default=0)
        return self._last[name]

    def put(self, figures: Mapping[str, float], step: int) -> None:
        """Several steps are written at once."""
        now = int(time.time() * 1000)
        self._waiting += [self._metric(name, value, now, step) for name, value in figures.items()]
        if time.monotonic() - self._written > _SECONDS or len(self._waiting) >= _MOST:
            self._write()

    def end(self, how: str) -> None:
        """MLflow shows how the run ended."""
        self._write()
        with _quiet():
            self._client.set_terminated(self._run, how)

    def _write(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._written = time.monotonic()
        if waiting:
            with _quiet():
                self._client.log_batch(self._run, metrics=waiting)

    def _going_on(self, state: Path, place: str) -> str:
        """The run that was begun there, which runs again; or nothing."""
        try:
            known = msgspec.json.decode(state.read_bytes(), type=_State)
        except (OSError, msgspec.MsgspecError):
            return ""
        if known.place != place:
            return ""
        self._client.update_run(known.run, status="RUNNING")
        return known.run

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _EXPERIMENT
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found is not None else self._client.create_experiment(name))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's own words, and its warnings of libraries below it."""
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
