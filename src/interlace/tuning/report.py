"""What a finished run says of itself: the manifest that stays with the adapter, and the report with its curve."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from interlace import __version__
from interlace.tuning.class_scores import metrics_of, words_of_classes
from interlace.tuning.columns import Columns
from interlace.tuning.folder import RunFolder, write_whole
from interlace.tuning.hardware import Device
from interlace.tuning.metrics import Measured, measure, measure_exact, needs_answers, words_of
from interlace.tuning.picture import draw
from interlace.tuning.scores import Known, change, score
from interlace.tuning.settings import TuneSettings
from interlace.tuning.trainer import Spent
from interlace.tuning.work import Work

_LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "safetensors")


class Curve(msgspec.Struct, frozen=True):
    """Loss by step: of the rows learnt from, and of the held-out examples."""

    train: list[tuple[int, float]]
    held_out: list[tuple[int, float]]

    @classmethod
    def of(cls, history: Sequence[dict[str, Any]]) -> Curve:
        """From the trainer's log."""
        return cls(
            [(entry["step"], entry["loss"]) for entry in history if "loss" in entry],
            [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry],
        )


@dataclass(frozen=True)
class Said:
    """The held-out answers: those wanted, and what the model made before and after."""

    wanted: list[str]
    before: list[str]
    after: list[str]


@dataclass(frozen=True)
class Outcome:
    """What came of a run."""

    before: list[Known]
    after: list[Known]
    curve: Curve
    data_tokens: int
    data_answers: int
    steps: int
    best_step: int
    spent: Spent
    memory_bytes: int
    trained: int
    parameters: int
    device: Device | None = None
    said: Said | None = None


def manifest_of(work: Work, settings: TuneSettings, outcome: Outcome) -> dict[str, Any]:
    """All that is needed to know what the adapter is, and to make it again."""
    hours, joules = outcome.spent.seconds / 3600, outcome.spent.joules
    return {
        "version": 1,
        "kind": work.kind,
        "name": settings.name,
        **_of_classes(work, settings),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "base": {
            "name": work.base.name,
            "source": work.base.source,
            "licence": work.base.licence,
            "files": work.base.digests,
            "dequantised": bool(work.base.gguf),
        },
        "data": {
            "files": work.digests,
            "licence": settings.licence or None,
            "source": settings.source or None,
            "hub": work.hub or None,
            "columns": Columns.read(settings.columns).as_mapping() or None,
            "class_names": work.class_names or None,
            "examples": len(work.data.train),
            "held_out": len(work.data.held_out),
            "tokens": outcome.data_tokens,
            "answer_tokens": outcome.data_answers,
        },
        "settings": {**dataclasses.asdict(settings), "threads": work.threads},
        "seed": settings.seed,
        "parameters": {"trained": outcome.trained, "all": outcome.parameters},
        "metrics": _metrics(work, settings, outcome)
        | {"loss_change": msgspec.to_builtins(change(outcome.before, outcome.after))},
        "steps": outcome.steps,
        "best_step": outcome.best_step,
        "tokens": outcome.spent.tokens,
        "hours": hours,
        "tokens_per_second": outcome.spent.tokens / max(outcome.spent.seconds, 1e-9),
        "peak_memory_bytes": outcome.memory_bytes,
        "energy_kwh": sum(joules.values()) / 3.6e6 if joules else None,
        "energy_of": sorted(f"{what} of the main machine" if settings.machines > 1 else what for what in joules),
        "machine": {
            "processor": platform.machine(),
            "system": platform.system(),
            "device": None if outcome.device is None else msgspec.to_builtins(outcome.device),
        },
        "libraries": {"interlace": __version__, "python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _LIBRARIES},
    }


def _metrics(work: Work, settings: TuneSettings, outcome: Outcome) -> dict[str, Any]:
    if work.head is not None:
        return metrics_of(outcome.before, outcome.after, work.head.labels)
    before, after = (msgspec.to_builtins(score(known)) for known in (outcome.before, outcome.after))
    return {"before": before, "after": after, "metric": msgspec.to_builtins(_measured(settings, outcome))}


def _measured(settings: TuneSettings, outcome: Outcome) -> Measured:
    if not needs_answers(settings.metric):
        return measure_exact(outcome.before, outcome.after)
    said = outcome.said
    assert said is not None, "the metric needs answers"
    return measure(settings.metric, said.before, said.after, said.wanted, settings.metric_pattern)


def _of_classes(work: Work, settings: TuneSettings) -> dict[str, Any]:
    """What is told of a classifier alone. An adapter is merged: no engine serves one beside an encoder."""
    if work.head is None:
        return {}
    head = {"labels": list(work.head.labels), "head": "new" if work.head.fresh else "of the base"}
    return {"task": settings.task, **head, "merged": settings.method == "lora"}


def write_report(folder: RunFolder, manifest: dict[str, Any], curve: Curve) -> None:
    """`report.json` and `loss.svg` in the run's folder."""
    write_whole(folder.path / "report.json", {**manifest, "curve": msgspec.to_builtins(curve)})
    measured = manifest["metrics"].get("metric")
    words = words_of(msgspec.convert(measured, Measured)) if measured else words_of_classes(manifest["metrics"])
    picture = draw(curve.train, curve.held_out, manifest["name"], words)
    (folder.path / "loss.svg").write_text(picture, encoding="utf-8")
