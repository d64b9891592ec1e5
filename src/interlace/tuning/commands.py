"""`interlace tune`: what the command line calls. Progress and warnings on standard error, the result on standard
output.

Exit codes: 0 the adapter is there, 1 the run has ended early, or what is there already stands against it, 2 wrong use,
settings or data, 130 ctrl-C.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import msgspec

from interlace.config import Settings, load_settings, public_name
from interlace.errors import ConfigError, InterlaceError
from interlace.gateway.adapter_placing import place_adapter
from interlace.gateway.added_models import with_added_models
from interlace.gateway.asking import Where
from interlace.models import Checkpoint
from interlace.tuning.bases import described, find_base
from interlace.tuning.check import check
from interlace.tuning.columns import Columns
from interlace.tuning.endings import GOES_ON
from interlace.tuning.events import AnyEvent
from interlace.tuning.examples import Examples, Problem, Severity, Task, errors_of
from interlace.tuning.folder import RunFolder, TuningError
from interlace.tuning.hardware import Device, Hardware, known_hardware, quicker_precision, this_gpu, this_machine
from interlace.tuning.heads import Head, check_names, head_over
from interlace.tuning.launch import DEEPSPEED, OF_ONE_MACHINE
from interlace.tuning.metrics import METRICS, Measured, capture, words_of
from interlace.tuning.placing import InService, check_place, check_size, check_where, model_over, owner_of, place_result
from interlace.tuning.plan import Plan
from interlace.tuning.plan_table import beside, plan_table
from interlace.tuning.planning import plan_of, share_of
from interlace.tuning.progress import progress_for_people, span
from interlace.tuning.recording import missing_stores, recording
from interlace.tuning.running import Interrupted, count_tokens, run_training
from interlace.tuning.said import Said
from interlace.tuning.settings import SETTINGS, TuneSettings, read_run, told
from interlace.tuning.sources import Sources, both_digests, find_sources, read_source
from interlace.tuning.split import split
from interlace.tuning.strange import once, strange_words
from interlace.tuning.work import Data, Placed, Work

__all__ = ["Asked", "once", "refuse_words", "tune_command"]

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
_PARTS = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
# What becomes of a run, and where its parts lie; threads, base and data are told by what they come to.
_NOT_OF_THE_RUN = (
    "owner", "licence", "source", "secrets", "nice", "log_to", "threads", "base", "data", "held_out_data",
    "data_config", "data_split", "held_out_split", *OF_ONE_MACHINE,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the command line says beside the settings."""

    file: str | None
    fresh: bool
    as_json: bool
    plan: bool = False


def tune_command(given: Mapping[str, Any], asked: Asked, where: Where) -> int:
    """Train, put the adapter into service, and tell what came of it."""
    if not _have(_PARTS):
        return USAGE
    if asked.file == "":
        raise ConfigError("--config: is empty. Name a YAML, or leave it out.")
    settings, said = read_run(None if asked.file is None else Path(asked.file), given)
    if not _have([METRICS[settings.metric].library]):
        return USAGE
    served = load_settings(where.config, where.env, {"home": where.home}, need_keys=False)
    try:
        if missing := missing_stores(settings):
            raise ConfigError(missing)
        check_where(where, served)
        sources = find_sources(settings, served.home)
        return _tune(_with_origin(settings, sources, asked), said, sources, served, asked, where)
    except Interrupted as error:
        print(error.message, file=sys.stderr)
        return INTERRUPTED
    except ConfigError as error:
        raise ConfigError(told(error.message, said)) from error
    except TuningError as error:
        if error.code == "died":  # its log's lines are no settings
            raise
        raise TuningError(told(error.message, said), code=error.code) from error
    except BrokenPipeError:
        raise
    except OSError as error:  # nearly always of the home folder: full, not ours, a file where a folder should be
        what = f"{error.filename or served.home}: {error.strerror or error}"
        raise TuningError(f"{what}. Mind its space and rights; --home names another folder.") from error
    except KeyboardInterrupt:
        but = ", without --fresh if it was learning already" if asked.fresh else ""
        print(f"Stopped. Give the same command again{but}.", file=sys.stderr)
        return INTERRUPTED


def refuse_words(words: Sequence[str], options: Sequence[str]) -> None:
    """Raise `ConfigError` for words of the command line that belong to none of the `options`, with what was meant."""
    if words:
        raise ConfigError("\n".join(strange_words(words, options, SETTINGS)))


def _tune(settings: TuneSettings, said: Said, sources: Sources, served: Settings, asked: Asked, where: Where) -> int:
    checkpoint = find_base(settings, said, served.home)
    data, digests, class_names, head = _data(settings, sources, checkpoint)
    kind: Literal["lora", "full"] = "full" if settings.makes_checkpoint else "lora"
    folder = RunFolder(served.home, settings.name, kind, settings.machine_rank)
    work = Work(
        home=str(served.home),
        settings=dataclasses.asdict(settings),
        base=described(checkpoint),
        data=data,
        digests=digests,
        hub=sources.hub,
        class_names=class_names,
        threads=max((settings.threads or _cores()) // settings.processes, 1),
        kind=kind,
        head=head,
    )
    wanted = settings.precision
    if wanted == "auto":
        settings, work = _with_precision(settings, work, folder, fresh=asked.fresh)
    work = msgspec.structs.replace(work, identity=_of_every_machine(work))
    if asked.plan:
        counted = count_tokens(work)
        rented_in = "bf16" if wanted == "auto" else wanted  # each GPU that has bfloat16 is quicker in it
        hardware = _hardware(settings, counted.device, rented_in)
        planned = plan_of(
            checkpoint.path, settings, counted.tokens, hardware, counted.answers, rented_in=rented_in
        )  # fmt: skip
        _tell_plan(planned, asked)
        return OK
    if settings.launcher == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(f"launcher: deepspeed is not installed. pip install deepspeed=={DEEPSPEED}, or choose fsdp2.")
    if settings.machine_rank:
        return _help(work, folder)
    with folder.locked():
        folder.settle()
        done = folder.finished and not asked.fresh
        known = with_added_models(served)
        model = model_over(checkpoint, settings, known, where)
        identity = _identity(work)
        replace = asked.fresh or folder.may_replace(identity)
        check_place(settings, served, model or "", where, done=done, fresh=replace)
        if model and not settings.makes_checkpoint:
            check_size(settings, checkpoint.path, model, known)
        run = folder.claim(identity, fresh=asked.fresh)
        if run.finished:
            print(f"{settings.name} was trained before; nothing is trained again.", file=sys.stderr)
        else:
            with progress_for_people() as progress, recording(settings, work, run) as recorder:

                def hear(event: AnyEvent) -> None:
                    progress.hear(event)
                    recorder.hear(event)

                _train(msgspec.structs.replace(work, anew=run.anew), run, hear, fresh=asked.fresh)
            folder.settle()
        name = made = None
        if settings.makes_checkpoint:
            made = place_result(settings, folder, model or "", served, where, replace=replace)
        elif model:
            name = _into_service(settings, model, folder, where, replace=replace)
        folder.placed()
    _tell(folder, name, asked, made, owner_of(settings))
    if made is not None and not asked.as_json:
        print(*made.words(classifies=settings.classifies, settings=served, where=where), sep="\n")
    if not asked.as_json:
        _tell_beside(checkpoint.path, settings, folder.manifest())
    return OK


def _train(work: Work, run: RunFolder, hear: Callable[[AnyEvent], None], *, fresh: bool) -> None:
    """As `run_training` does; who began anew hears that the same command would do so again."""
    try:
        run_training(work, run, hear)
    except TuningError as error:
        if fresh and error.code in GOES_ON:
            message = f"{error.message} Leave --fresh out of it: with that, all begins anew."
            raise type(error)(message, code=error.code) from error
        raise


def _help(work: Work, folder: RunFolder) -> int:
    """Learn with the main machine, which keeps what comes of it."""
    with folder.locked():
        folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
        with progress_for_people() as progress:
            run_training(work, folder, progress.hear)
        shutil.rmtree(folder.path, ignore_errors=True)
    print("This machine's part is done. The main one (machine_rank 0) scores and keeps the result.", file=sys.stderr)
    return OK


# --- before ------------------------------------------------------------------------------------------------------


def _have(parts: Sequence[str]) -> bool:
    """Whether they are installed; a person hears how to have those that are not."""
    missing = [name for name in parts if name and importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"Error: interlace tune needs {', '.join(missing)}. Install the training parts: "
            "pip install 'interlace[tune]'",
            file=sys.stderr,
        )
    return not missing


def _with_origin(settings: TuneSettings, sources: Sources, asked: Asked) -> TuneSettings:
    """Settings with licence and source of the data; those of a data set on the Hub are its card's, and a person at a
    terminal is asked for what is missing."""
    said: dict[str, Any] = {}
    known = {"licence": sources.licence, "source": sources.source}
    for name, words in (("licence", "Licence of the data, such as CC-BY-4.0"), ("source", "Where the data come from")):
        if getattr(settings, name):
            continue
        if known[name]:
            print(f"The {name} of the data: {known[name]}, as the Hub says. Another: --{name}.", file=sys.stderr)
            said[name] = known[name]
            continue
        if sys.stdin.isatty() and sys.stderr.isatty() and not asked.as_json:
            print(f"{words} (empty: not known): ", end="", file=sys.stderr, flush=True)
            said[name] = sys.stdin.readline().strip()
        if not said.get(name):
            print(f"Warning: the {name} of the data is not known. Say it with --{name}.", file=sys.stderr)
    return dataclasses.replace(settings, **said)


def _cores() -> int:
    """Those that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def _data(
    settings: TuneSettings, sources: Sources, base: Checkpoint
) -> tuple[Data, dict[str, str], dict[str, list[str]], Head | None]:
    """The examples, checked and split; the digests of their files; what stands for numbers of classes; and a
    classifier's head. Raises `ConfigError` that lists what is wrong."""
    task: Task = "classify" if settings.classifies else "chat"
    columns = Columns.read(settings.columns)
    train, digests = read_source(sources.data, task, columns)
    if sources.held_out is not None:
        held_out, more = read_source(sources.held_out, task, columns)
        digests = both_digests(digests, more)
    else:
        train, held_out = split(train, held_out=settings.held_out, seed=settings.seed)
    grave: Severity = "warning" if settings.secrets == "warn" else "error"
    problems = [*check(train, held_out, secrets=grave), *check_names(settings.named_labels, train, held_out)]
    for problem in problems:
        if problem.severity == "warning":
            print(problem, file=sys.stderr)
    if errors := errors_of(problems):
        raise ConfigError("\n".join(_of_a_setting(problem, train.file) for problem in errors))
    for column, names in train.class_names.items():
        said = ", ".join(f"{number} is {name}" for number, name in enumerate(names))
        print(
            f"The numbers of column {column} have names in the data set, and are so read: {said[:400]}", file=sys.stderr
        )
    if settings.metric == "captured":
        _check_captured(settings.metric_pattern, held_out)
    head = None
    if settings.classifies:
        head, words = head_over(base, train.labels, settings.named_labels)
        if words:
            print(words, file=sys.stderr)
    class_names = {column: list(names) for column, names in train.class_names.items()}
    return Data(_placed(train), _placed(held_out), train.file, held_out.file), digests, class_names, head


def _of_a_setting(problem: Problem, train_file: str) -> str:
    """What a person reads: of a file as a whole, after the setting that names it."""
    if problem.line:
        return str(problem)
    return f"{'data' if problem.file == train_file else 'held_out_data'}: {problem}"


def _check_captured(pattern: str, held_out: Examples) -> None:
    lines = [row.line for row in held_out.rows if capture(pattern, row.answer) is None]
    if lines:
        raise ConfigError(
            f"{held_out.file}:{lines[0]}: metric_pattern: finds nothing in the answer of this held-out example, and of "
            f"{len(lines) - 1} others. Mend the pattern, or give another metric."
        )


def _placed(examples: Examples) -> list[Placed]:
    return [Placed(row.line, row.chat(), row.label) for row in examples.rows]


def _with_precision(settings: TuneSettings, work: Work, folder: RunFolder, *, fresh: bool) -> tuple[TuneSettings, Work]:
    """With the precision that the run was begun in; where it was not, the one that is quicker here."""
    could = {}
    for precision in ("f32", "bf16"):
        chosen = dataclasses.replace(settings, precision=precision)
        could[precision] = chosen, msgspec.structs.replace(work, settings=dataclasses.asdict(chosen))
    begun: list[Callable[[dict[str, Any]], bool]] = [folder.may_replace]  # what is beside a finished run goes first
    begun += [] if fresh else [folder.is_of]
    for was in begun:
        for chosen, its_work in could.values():
            if was(_identity(its_work)):
                return chosen, its_work
    quicker = quicker_precision()
    print(f"precision: auto is {quicker} here, which is quicker.", file=sys.stderr)
    return could[quicker]


def _identity(work: Work) -> dict[str, Any]:
    usual = dataclasses.asdict(TuneSettings())
    settings = {
        name: value
        for name, value in work.settings.items()
        if name not in _NOT_OF_THE_RUN and value != usual[name]  # what a later release adds changes nothing
    }
    rows = hashlib.sha256(msgspec.json.encode(work.data.train) + b"\0" + msgspec.json.encode(work.data.held_out))
    identity: dict[str, Any] = msgspec.to_builtins(
        {
            "kind": work.kind,
            "base": work.base.digests,
            "data": {"examples": rows.hexdigest()},
            "settings": {**settings, "threads": work.threads},
        }
    )
    return identity


def _of_every_machine(work: Work) -> dict[str, Any]:
    """The run's identity, but for what may differ from one machine to another; and the libraries that must not."""
    identity = _identity(work)
    identity["settings"].pop("threads")
    return identity | {"libraries": {name: version(name) for name in _PARTS}}


# --- the plan ----------------------------------------------------------------------------------------------------


def _hardware(settings: TuneSettings, device: Device | None, rented_in: str = "") -> list[Hardware]:
    """This machine, one process' part of it, is the first; then what is rented, with its speed in that precision, else
    in the run's."""
    here = share_of(this_machine(), settings.processes) if device is None else this_gpu(device)
    return [here, *known_hardware(rented_in or settings.precision).values()]


def _tell_plan(planned: Plan, asked: Asked) -> None:
    if asked.as_json:
        print(msgspec.json.format(msgspec.json.encode(planned), indent=2).decode())
    else:
        print(plan_table(planned))


def _tell_beside(base: Path, settings: TuneSettings, manifest: Mapping[str, Any]) -> None:
    found = manifest["machine"].get("device")
    device = None if found is None else msgspec.convert(found, Device)
    data = manifest["data"]
    planned = plan_of(base, settings, data["tokens"], _hardware(settings, device)[:1], data.get("answer_tokens"))
    print(
        beside(
            planned,
            seconds=3600 * manifest["hours"],
            memory_bytes=manifest["peak_memory_bytes"],
            tokens=manifest["tokens"],
        )
    )


# --- after -------------------------------------------------------------------------------------------------------


def _into_service(
    settings: TuneSettings, model: str, folder: RunFolder, where: Where, *, replace: bool
) -> tuple[str, bool]:
    """The adapter's public name, and whether it is served now."""
    try:
        view = place_adapter(folder.result, model, settings.name, owner_of(settings), where, replace=replace)
    except InterlaceError as error:
        raise TuningError(
            f"The adapter is made and lies in {folder.result}, but it cannot be served: {error.message} The same "
            "command tries that again, and trains nothing."
        ) from error
    return public_name(model, settings.name), view is not None


def _tell(folder: RunFolder, name: tuple[str, bool] | None, asked: Asked, made: InService | None, owner: str) -> None:
    manifest = folder.manifest()
    if asked.as_json:
        report = msgspec.json.decode((folder.path / "report.json").read_bytes())
        served = {"served_as": name and name[0], "served_now": bool(name and name[1]), "folder": str(folder.result)}
        served |= {} if made is None else made.report()
        print(msgspec.json.format(msgspec.json.encode(report | served), indent=2).decode())
        return
    before, after, change = (manifest["metrics"][key] for key in ("before", "after", "loss_change"))
    print(
        f"{manifest['name']} learnt from {manifest['data']['examples']} examples in {span(3600 * manifest['hours'])}: "
        f"{manifest['steps']} steps, the best after step {manifest['best_step']}, "
        f"{manifest['tokens_per_second']:,.0f} tokens/s, {manifest['parameters']['trained']:,} parameters trained."
    )
    print(
        f"Held out, {after['examples']} examples: loss {_interval(before['loss'])} before, {_interval(after['loss'])} "
        f"after, a change of {_interval(change)}."
    )
    if "labels" in manifest:
        _tell_of_classes(manifest)
    elif measured := manifest["metrics"].get("metric"):  # not in those of release 0.1
        print(words_of(msgspec.convert(measured, Measured)))
    print(f"report.json and loss.svg: {folder.path}")
    if made is not None:
        return  # it tells by itself what became of it
    if name is None:
        base = manifest["base"]["name"]
        print(
            f"No model of the configuration has the base {base}, so it is not served. Once one has: interlace adapters "
            f"add {folder.result} --model MODEL --name {manifest['name']}" + (f" --owner {owner}" if owner else "")
        )
    elif name[1]:
        print(f"Served now as {name[0]}. Try it: interlace chat {manifest['name']}")
    else:
        print(f"No server runs; the next `interlace serve` has it as {name[0]}.")


def _tell_of_classes(manifest: Mapping[str, Any]) -> None:
    before, after = (manifest["metrics"][key] for key in ("before", "after"))
    for name, words in (("accuracy", "Accuracy"), ("macro_f1", "Macro F1")):
        print(f"{words}: {_percent(before[name])} before, {_percent(after[name])} after.")
    labels = manifest["labels"]
    made = "a new head, which began at random" if manifest["head"] == "new" else "the base's own head"
    print(f"{len(labels)} labels ({', '.join(labels)[:200]}), {made}.")


def _interval(figure: Mapping[str, float]) -> str:
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def _percent(figure: Mapping[str, float]) -> str:
    return f"{100 * figure['value']:.0f} % ({100 * figure['low']:.0f} to {100 * figure['high']:.0f})"
