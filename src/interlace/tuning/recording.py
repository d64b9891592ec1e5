"""What a run does, kept in TensorBoard or MLflow where asked; beside the run's own report, never in place of it.

Runs in the process that the person started, so that a slow store holds up no step for long. A run that goes on writes
on where it stopped: each step once, none left out. A store that fails during the training is given up with a word; one
that cannot be had at all is told before it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import msgspec

from interlace import __version__
from interlace.tuning.class_scores import CLASS_SCORES
from interlace.tuning.events import AnyEvent, Held, Step
from interlace.tuning.folder import RunFolder, TuningError
from interlace.tuning.running import Interrupted
from interlace.tuning.settings import TuneSettings, stores_of
from interlace.tuning.work import Work

_NEEDS = {"tensorboard": "tensorboardX", "mlflow": "mlflow"}
LOSS, HELD_OUT = "train/loss", "held_out/loss"


class Store(Protocol):
    """Where figures are kept. Each may raise whatever its library does."""

    def last(self, name: str) -> int:
        """The last step of that figure that is kept; 0 where there is none."""
        ...

    def put(self, figures: Mapping[str, float], step: int) -> None:
        """Figures of a step; steps come in order."""
        ...

    def end(self, how: str) -> None:
        """Keep what is not yet kept. `how`: FINISHED, FAILED or KILLED."""
        ...


class Recorder:
    """Tells the stores what it hears."""

    def __init__(self, stores: dict[str, Store]) -> None:
        self._stores = stores

    def replay(self, history: Sequence[Mapping[str, Any]]) -> None:
        """What the checkpoint that the run goes on from knows, and a store does not: it was cut off before it was."""
        for entry in history:
            if "loss" in entry:
                self._put(LOSS, {LOSS: entry["loss"], "train/learning_rate": entry["learning_rate"]}, entry["step"])
            elif "eval_loss" in entry:
                self._put(HELD_OUT, {HELD_OUT: entry["eval_loss"]}, entry["step"])

    def hear(self, event: AnyEvent) -> None:
        """Keep a step, or a look at the held-out examples."""
        if isinstance(event, Step):
            figures = {
                LOSS: event.loss,
                "train/learning_rate": event.learning_rate,
                "train/tokens_per_second": event.tokens_per_second,
                "train/peak_memory_bytes": float(event.memory_bytes),
            }
            self._put(LOSS, figures, event.step)
        elif isinstance(event, Held):
            self._put(HELD_OUT, {HELD_OUT: event.loss}, event.step)

    def score(self, manifest: Mapping[str, Any]) -> None:
        """The held-out scores: step 0 is the base, the other the best."""
        metrics = manifest["metrics"]
        measured = metrics.get("metric")
        for when, step in (("before", 0), ("after", manifest["best_step"])):
            figures = {"score/loss": metrics[when]["loss"]["value"]}
            if measured:
                figures[f"score/{measured['name']}"] = measured[when]["value"]
            else:  # of a classifier
                figures |= {f"score/{name}": metrics[when][name]["value"] for name in CLASS_SCORES}
            for store in list(self._stores):
                self._try(store, lambda kept, figures=figures, step=step: kept.put(figures, step))

    def end(self, how: str) -> None:
        """Close the stores."""
        for store in list(self._stores):
            self._try(store, lambda kept: kept.end(how))

    def _put(self, name: str, figures: Mapping[str, float], step: int) -> None:
        for store in list(self._stores):
            self._try(store, lambda kept: kept.put(figures, step) if step > kept.last(name) else None)

    def _try(self, store: str, act: Any) -> None:
        try:
            act(self._stores[store])
        except Exception as error:  # noqa: BLE001 - whatever a store does, the training goes on
            del self._stores[store]
            print(  # noqa: T201 - it speaks to the person at the terminal
                f"Warning: {store} is given up, the training goes on: {_first_line(error)}", file=sys.stderr
            )


def missing_stores(settings: TuneSettings) -> str:
    """How to install what the stores need and is not here; or nothing."""
    missing = [name for name in stores_of(settings) if importlib.util.find_spec(_NEEDS[name]) is None]
    if not missing:
        return ""
    return f"log_to: {', '.join(missing)} is not installed. Install it: pip install 'interlace[{','.join(missing)}]'"


@contextmanager
def recording(settings: TuneSettings, work: Work, folder: RunFolder) -> Iterator[Recorder]:
    """The stores that the settings name, open; closed at the end, however it is reached. Raises `TuningError` where one
    cannot be had."""
    stores: dict[str, Store] = {}
    last = folder.last_sealed()
    for name in stores_of(settings):
        try:
            stores[name] = _opened(name, settings, work, folder)
        except Exception as error:
            raise TuningError(
                f"log_to: {name} cannot be had: {_first_line(error)}. Mend it, or leave {name} out of log_to."
            ) from error
    recorder = Recorder(stores)
    if last is not None:
        recorder.replay(msgspec.json.decode((last / "trainer_state.json").read_bytes())["log_history"])
    how = "FAILED"
    try:
        yield recorder
        recorder.score(folder.manifest())
        how = "FINISHED"
    except (KeyboardInterrupt, Interrupted):
        how = "KILLED"
        raise
    finally:
        recorder.end(how)


def _opened(name: str, settings: TuneSettings, work: Work, folder: RunFolder) -> Store:
    if name == "tensorboard":
        from interlace.tuning.recording_tensorboard import TensorBoard

        return TensorBoard(folder, _settings(settings), _about(settings, work))
    from interlace.tuning.recording_mlflow import Mlflow

    return Mlflow(folder, _settings(settings), _about(settings, work))


def _settings(settings: TuneSettings) -> dict[str, str]:
    return {name: str(value) for name, value in dataclasses.asdict(settings).items()}


def _about(settings: TuneSettings, work: Work) -> dict[str, str]:
    """What the run is of, in digests."""
    about = {
        "interlace.version": __version__,
        "base.name": work.base.name,
        "base.licence": work.base.licence or "",
        "data.licence": settings.licence,
        "data.source": settings.source,
        "data.examples": str(len(work.data.train)),
        "data.held_out": str(len(work.data.held_out)),
    }
    about |= {f"base.sha256.{_key(file)}": digest for file, digest in work.base.digests.items()}
    about |= {f"data.sha256.{_key(file)}": digest for file, digest in work.digests.items()}
    for name, taken in work.hub.items():
        about |= {f"{name}.hub.{key}": value for key, value in taken.items()}
    return {key: value for key, value in about.items() if value}


def _key(file: str) -> str:
    """A file's name as a key that every store takes."""
    return re.sub(r"[^\w./-]", "_", file)[:100]


def _first_line(error: BaseException) -> str:
    """Without who is let in where: the address of a store may have a password in it, and a library may repeat it."""
    line = re.sub(r"(?<=://)\S*@", "", str(error).strip().partition("\n")[0])
    return (line[:300] or type(error).__name__).rstrip(".")
