"""What a run of `interlace tune` is told: by the command line, and by a YAML of its own."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from interlace.config import LONGEST_NAME, Settings, is_adapter_name
from interlace.errors import ConfigError
from interlace.models import is_data_set
from interlace.tuning.columns import Columns, column_problems, of_yaml
from interlace.tuning.launch import BLOCK, launch_problems
from interlace.tuning.metrics import METRICS, flaw_of
from interlace.tuning.said import OPTIONS, Said, meant
from interlace.tuning.settings_file import MOST_YAML_BYTES, lines_of

DEFAULT_OWNER = "default"
EVERYBODY = "everybody"
_LONGEST = 20_000  # characters of a text, where nothing else is said: texts go into the manifest, which is bounded


def _said(doc: str, default: Any, *, least: float | None = None, most: float | None = None, many: bool = False) -> Any:
    """`most`: of a text, its characters. `many`: in a YAML, a list may stand there."""
    return dataclasses.field(default=default, metadata={"doc": doc, "least": least, "most": most, "many": many})


@dataclass(frozen=True, slots=True)
class TuneSettings:
    """One run. What has an empty default must be given; the command line's words beat the file's."""

    base: str = _said("The checkpoint to train on: its name, or its path.", "")
    data: str = _said("The examples to learn from: a file, or hub:OWNER/NAME of the Hugging Face Hub.", "")
    data_config: str = _said("Of a data set on the Hub: its configuration, where it has several.", "")
    data_split: str = _said("Of a data set on the Hub: the split to learn from.", "train")
    held_out_split: str = _said(
        "Of a data set on the Hub: the split that is held out; then held_out means nothing.", ""
    )
    columns: str = _said(
        "What the data's columns are called, our names first: prompt=question,completion=answer; in a YAML, "
        "{prompt: question, completion: answer}.",
        "",
    )
    name: str = _said("What the result is called; callers write NAME, and of an adapter MODEL:NAME.", "")
    task: str = _said("What is learnt: chat, to answer; or classify, which of some labels a text has.", "chat")
    labels: str = _said(
        "Of task classify, the labels in the order of the head, with commas between; else those that the base knows, "
        "or the data's, sorted.",
        "",
        many=True, most=MOST_YAML_BYTES,
    )  # fmt: skip
    owner: str = _said(
        "The organisation that the result belongs to, by name or id: for others there is no such model; everybody "
        "opens it to all.",
        DEFAULT_OWNER, most=LONGEST_NAME,
    )  # fmt: skip
    held_out: float = _said(
        "The share of the examples that is kept from training, to score the model and to stop in time.",
        0.1, least=0.01, most=0.5,
    )  # fmt: skip
    held_out_data: str = _said(
        "Held-out examples of their own, a file or hub:OWNER/NAME; then held_out means nothing.", ""
    )
    licence: str = _said("The licence of the data, such as CC-BY-4.0; it is kept with the adapter.", "", most=200)
    source: str = _said("Where the data come from; it is kept with the adapter.", "", most=2000)
    method: str = _said(
        "How it is learnt: lora, an adapter beside the base; or full, the base's own weights, which makes a "
        "checkpoint. Task classify makes a checkpoint by either, and takes full where nothing is said.",
        "lora",
    )
    private: str = _said(
        "Of method full, these blocks alone: blocks:24-29, or blocks:24-29+head with the final norm and a head of its "
        "own.",
        "",
    )
    epochs: float = _said("How often each example is seen, at most.", 3.0, least=0.01, most=1000)
    batch: int = _said("Rows in one step of learning; 16 of task classify.", 4, least=1, most=4096)
    rows_at_once: int = _said(
        "Of those, what a process computes at once, at most; 0: one on a processor, on a GPU as many as have 16,384 "
        "tokens. Of task classify, all.",
        0, least=0, most=4096,
    )  # fmt: skip
    max_tokens: int = _said("The longest example, and the length of a row.", 512, least=8, most=1 << 17)
    packing: bool = _said("Put several short examples into one row; none sees another.", True)
    learning_rate: float = _said(
        "The highest; it rises first and falls along a cosine. 0: 0.0005 for an adapter, 0.00005 for a checkpoint.",
        0.0, least=0, most=1,
    )  # fmt: skip
    warmup: float = _said("The share of the steps in which the learning rate rises.", 0.05, least=0, most=0.9)
    rank: int = _said("The rank of the adapter.", 16, least=1, most=512)
    alpha: float = _said("What the adapter adds is multiplied by alpha / rank.", 32.0, least=0.001, most=1e6)
    dropout: float = _said("The share of the adapter's inputs that is left out at random.", 0.05, least=0, most=0.9)
    targets: str = _said("The layers it changes: all-linear, or names with commas between.", "all-linear", many=True)
    evaluate_every: int = _said(
        "Steps between two looks at the held-out examples, each with a checkpoint; 0: ten in the run.", 0, least=0
    )
    patience: int = _said("Stop when so many looks in a row bring nothing better; 0: never.", 3, least=0)
    metric: str = _said(
        "What the held-out answers are scored by, beside the loss: exact_match, token_f1, rouge_l, chrf, bleu, "
        "first_line, or captured, which needs metric_pattern.",
        "exact_match",
    )
    metric_pattern: str = _said(
        "Of metric captured: the regular expression that takes out of an answer what must be right.", ""
    )
    precision: str = _said(
        "Numbers of the forward and backward pass: f32; bf16; or auto, the one that is quicker on this machine, which "
        "the run's first start measures.",
        "f32",
    )
    seed: int = _said("All that is random follows from it.", 1, least=0, most=2**31)
    threads: int = _said("Threads of the training; 0: as many as there are cores.", 0, least=0, most=1024)
    launcher: str = _said(
        "How several processes learn together: single; ddp, each has the whole model; fsdp2, each has a part; or "
        "deepspeed, by zero_stage.",
        "single",
    )
    processes: int = _said("How many there are on each machine; batch is what all do together.", 1, least=1, most=256)
    zero_stage: int = _said(
        "What DeepSpeed shares out: 1 Adam's averages, 2 the gradients too, 3 the weights too.", 2, least=1, most=3
    )
    offload: str = _said(
        "What DeepSpeed keeps in the machine's memory, not the device's: none, optimizer, or all.", "none"
    )
    machines: int = _said("How many learn together; each is given the same command.", 1, least=1, most=4096)
    machine_rank: int = _said("Which of them this is, from 0, the main one, which keeps all.", 0, least=0, most=4095)
    main_address: str = _said("Where the others reach the main one: a name or an IP address.", "")
    main_port: int = _said("The port there.", 29500, least=1, most=65535)
    join_seconds: int = _said("How long they wait for each other at the beginning.", 600, least=1, most=86400)
    log_to: str = _said(
        "Where the figures of each step are kept, too: tensorboard, mlflow, or both with a comma between.", "",
        many=True,
    )  # fmt: skip
    secrets: str = _said(
        "What becomes of data with a card number, API key or private key in them: refuse, or warn, for what only looks "
        "like one.",
        "refuse",
    )
    nice: int = _said(
        "How far it stands back for others on the machine: 0 not at all, 19 for all.", 19, least=0, most=19
    )

    @property
    def classifies(self) -> bool:
        """Whether the base is to tell labels apart."""
        return self.task == "classify"

    @property
    def makes_checkpoint(self) -> bool:
        """Whether whole weights come of it, not an adapter."""
        return self.method == "full" or self.classifies

    @property
    def named_labels(self) -> tuple[str, ...]:
        """Those that are named, in that order."""
        return tuple(label for each in self.labels.split(",") if (label := each.strip()))


_HINTS = get_type_hints(TuneSettings)
_FIELDS = {field.name: field for field in dataclasses.fields(TuneSettings)}
SETTINGS = tuple(_FIELDS)
"""Their names."""
_NEEDED = ("base", "data", "name")
_USUAL_OF_CLASSES = {"method": "full", "batch": 16}  # what task classify has where nothing is said
_SLICE = re.compile(r"blocks:(\d{1,4})-(\d{1,4})(\+head)?")
STORES = ("tensorboard", "mlflow")
_TOKENS_OF_A_GPU = 16384  # computed at once
_BLOCK_FORM = "such as ddp, or a block: {kind: ddp, processes: 2}"
_OF_THE_SERVER = frozenset(field.name for field in dataclasses.fields(Settings))
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def read_settings(file: Path | None, given: Mapping[str, Any]) -> TuneSettings:
    """As `read_run`, but the settings alone."""
    return read_run(file, given)[0]


def read_run(file: Path | None, given: Mapping[str, Any]) -> tuple[TuneSettings, Said]:
    """Settings from the YAML `file`, with those `given` by the command line on top (None: not given); and where each
    was said. Paths in the file are relative to its folder. Raises `ConfigError` that lists every problem, each with its
    place and the mend."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    places: dict[str, str] = {}
    if file is not None:
        for place, name, node in lines_of(file, problems):
            places[name] = place
            _take(values, problems, f"{place}: {name[:60]}", name, _value(name, node))
        _from_its_folder(values, file.absolute().parent)
    typed = {name: value for name, value in given.items() if value is not None}
    for name, value in typed.items():
        _take(values, problems, OPTIONS.get(name, name), name, value)
    said = Said(typed.keys(), places, file="" if file is None else str(file))
    if values.get("task") == "classify":
        values = _USUAL_OF_CLASSES | values
    left = (*_what_is_left(values, said), *_of_classes(values, said), *column_problems(values, said))
    problems += [told(problem, said) for problem in left]
    if problems:
        raise ConfigError("\n".join(problems))
    if values.get("private"):
        values["method"] = "full"
    return TuneSettings(**values), said


def told(message: str, said: Said) -> str:
    """A message whose lines may begin with settings' names, with where they were said instead."""
    return said.told(message, _FIELDS)


def highest_rate(settings: TuneSettings) -> float:
    """The learning rate that is meant."""
    return settings.learning_rate or (5e-4 if settings.method == "lora" else 5e-5)


def rows_together(settings: TuneSettings, *, gpu: bool) -> int:
    """How many rows a process computes at once: a part of its share of the batch that leaves no rest."""
    share = max(1, settings.batch // (settings.processes * settings.machines))
    if settings.classifies:
        return share
    most = settings.rows_at_once or (max(1, _TOKENS_OF_A_GPU // settings.max_tokens) if gpu else 1)
    return max(rows for rows in range(1, share + 1) if share % rows == 0 and rows <= most)


def stores_of(settings: TuneSettings) -> list[str]:
    """Where the figures of each step are kept, too; each once."""
    return list(dict.fromkeys(_names(settings.log_to)))


def blocks_of(private: str) -> tuple[int, int, bool]:
    """First and last block of a slice, both among them, and whether the head belongs to it."""
    found = _SLICE.fullmatch(private)
    assert found is not None, "checked when the settings were read"
    return int(found[1]), int(found[2]), found[3] is not None


def settings_help() -> Iterator[tuple[str, str, str]]:
    """Name, default and meaning of each setting, for the documentation."""
    for name, field in _FIELDS.items():
        default = "" if field.default == "" else str(field.default).lower()
        yield name, default, field.metadata["doc"]


# --- the file ----------------------------------------------------------------------------------------------------


def _value(name: str, node: yaml.Node) -> Any:
    many = name in _FIELDS and _FIELDS[name].metadata["many"]
    if many and isinstance(node, yaml.SequenceNode) and _are_words(node):
        return ",".join(each.value for each in node.value)
    if name == "columns" and isinstance(node, yaml.MappingNode):
        return node if (text := of_yaml(node)) is None else text
    if isinstance(node, yaml.ScalarNode):
        return None if node.tag.endswith(":null") else node.value
    return node


def _from_its_folder(values: dict[str, Any], folder: Path) -> None:
    for name in ("data", "held_out_data"):
        if values.get(name) and not is_data_set(values[name]):
            values[name] = str(folder / Path(values[name]).expanduser())
    base = values.get("base", "")
    if base.startswith(("./", "../", "~/")):
        values["base"] = str(folder / Path(base).expanduser())


# --- values ------------------------------------------------------------------------------------------------------


def _take(values: dict[str, Any], problems: list[str], where: str, name: str, value: Any) -> None:
    """Put a sound value into `values`, or the problem with it into `problems`, as told of what stands at `where`."""
    if name not in _FIELDS:
        problems.append(f"{where}: is no setting{_mend_of(name)}")
        return
    try:
        values[name] = _parsed(value, _FIELDS[name])
    except ValueError as error:
        problems.append(f"{where}: {error}")


def _mend_of(name: str) -> str:
    block, mark, inner = name.partition("launcher.")
    if mark and not block:
        near = difflib.get_close_matches(inner, ("kind", *BLOCK), 1)
        meant_so = f" Did you mean {near[0]}?" if near else ""
        return f".{meant_so} In the block there are: kind, {', '.join(BLOCK)}. Other settings stand outside."
    if near_one := meant(name, _FIELDS):
        return f". Did you mean {near_one}?"
    if name in _OF_THE_SERVER:
        return " of a run, but one of the server's interlace.yaml. Here, --config names a YAML with settings of a run."
    return f". There are: {', '.join(_FIELDS)}."


def _parsed(value: Any, field: dataclasses.Field[Any]) -> Any:
    kind = _HINTS[field.name]
    if isinstance(value, yaml.Node) and field.name == "columns":
        raise ValueError("is no mapping of names. Write such as {prompt: [instruction, input], completion: output}.")
    if value is None or isinstance(value, yaml.Node):
        what, mend = ("empty", ", or leave it out") if value is None else (f"not {_KINDS[kind]}", "")
        wanted = "names with commas between, or a list of them" if field.metadata["many"] else _KINDS[kind]
        raise ValueError(f"is {what}. Write {_BLOCK_FORM if field.name == 'launcher' else wanted}{mend}.")
    if kind is bool:
        word = str(value).strip().lower()
        if word not in ("true", "false", "yes", "no", "on", "off"):
            raise ValueError(f"is not true or false but {str(value)[:60]!r}. Write true or false.")
        return word in ("true", "yes", "on")
    if kind is str:
        return _text(str(value).strip(), field)
    try:
        number = kind(value)
    except ValueError:
        raise ValueError(f"is not {_KINDS[kind]} but {str(value)[:60]!r}. Write {_KINDS[kind]}.") from None
    least, most = field.metadata["least"], field.metadata["most"]
    if not math.isfinite(number) or (least is not None and number < least) or (most is not None and number > most):
        bounds = f"at least {_plain(least)}" if most is None else f"from {_plain(least)} to {_plain(most)}"
        raise ValueError(f"is {str(value)[:60]}. Write a number {bounds}.")
    return number


def _text(text: str, field: dataclasses.Field[Any]) -> str:
    most = field.metadata["most"] or _LONGEST
    if len(text) > most:
        raise ValueError(f"has {len(text):,} characters, and can have {most:,}. Shorten it.")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{text[:60].encode('ascii', 'backslashreplace').decode()} is not UTF-8. Write it in UTF-8.")
    if "\0" in text:
        raise ValueError("has a NUL character in it. Leave it out.")
    return str(Columns.read(text)) if field.name == "columns" else text


def _plain(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else f"{bound:g}"


def _are_words(node: yaml.SequenceNode) -> bool:
    return all(isinstance(one, yaml.ScalarNode) and "," not in one.value for one in node.value)


def _what_is_left(values: Mapping[str, Any], said: Said) -> Iterator[str]:
    """What no single value shows, each beginning with a setting's name."""
    for name in _NEEDED:
        if not values.get(name, name in said.typed or name in said.places):
            yield f"{name}: is {'empty' if name in values else 'missing'}. {_FIELDS[name].metadata['doc']}"
    if values.get("name") and not is_adapter_name(values["name"]):
        yield (
            f"name: {values['name'][:80]!r} cannot be a name. Write 1 to 64 letters, digits and . _ -, a letter or "
            "digit first."
        )
    if not values.get("owner", DEFAULT_OWNER):
        yield f"owner: is empty. Name an organisation; {EVERYBODY} opens the result to all."
    if values.get("precision", "f32") not in ("f32", "bf16", "auto"):
        yield f"precision: is {values['precision'][:60]!r}. Write f32, bf16 or auto."
    if values.get("precision") == "auto" and values.get("machines", 1) > 1:
        yield "precision: is auto, but all machines must use the same. Write f32 or bf16."
    if values.get("secrets", "refuse") not in ("refuse", "warn"):
        yield f"secrets: is {values['secrets'][:60]!r}. Write refuse or warn."
    if values.get("method", "lora") not in ("lora", "full"):
        yield f"method: is {values['method'][:60]!r}. Write lora or full."
    if private := values.get("private", ""):
        if not _SLICE.fullmatch(private):
            yield f"private: is {private[:60]!r}. Write blocks:24-29 or blocks:24-29+head."
        if values.get("method", "full") != "full":
            yield f"private: is for method full, which makes a checkpoint. Write {said.write('method', 'full')}."
    yield from _of_the_data(values, said)
    if wrong := [name for name in _names(values.get("log_to", "")) if name not in STORES]:
        yield f"log_to: {wrong[0][:60]!r} is none. There are: {', '.join(STORES)}."
    yield from _of_the_metric(values.get("metric", "exact_match"), values.get("metric_pattern", ""))
    yield from launch_problems(values)


def _of_the_data(values: Mapping[str, Any], said: Said) -> Iterator[str]:
    data, held_out = values.get("data", ""), values.get("held_out_data", "")
    on_the_hub = [name for name in (data, held_out) if is_data_set(name)]
    if values.get("held_out_split") and not on_the_hub:
        yield f"held_out_split: is for a data set on the Hub. Of a file, write {said.write('held_out_data', 'FILE')}."
    for name in ("data_split", "data_config"):
        usual = _FIELDS[name].default
        if values.get(name, usual) != usual and not (is_data_set(data) if name == "data_split" else on_the_hub):
            yield f"{name}: is for a data set on the Hub, and {data[:200] or 'the data'} is a file. Leave it out."
    if re.fullmatch(r"[0-9.]+ ?%?", held_out):
        yield f"held_out_data: is {held_out}, which is no file. For a share, write in the YAML: held_out: 0.2"
    elif held_out and not on_the_hub and _same(data, held_out):
        yield "held_out_data: is the file to learn from. Give another, or leave it out: then a part is held out."


def _same(one: str, other: str) -> bool:
    try:
        return Path(one).expanduser().samefile(Path(other).expanduser())
    except (OSError, RuntimeError):  # what is not there is told when it is read
        return False


def _names(text: str) -> list[str]:
    return [name for each in text.split(",") if (name := each.strip())]


def _of_the_metric(metric: str, pattern: str) -> Iterator[str]:
    if metric not in METRICS:
        near = difflib.get_close_matches(metric.lower().replace("-", "_"), METRICS, 1)
        meant = f"Did you mean {near[0]}? " if near else ""
        yield f"metric: {metric[:60]!r} is none. {meant}There are: {', '.join(METRICS)}."
    elif metric == "captured" and not pattern:
        yield (
            "metric_pattern: is missing, which metric captured needs. Write in the YAML what takes the answer out of "
            r"the text, such as metric_pattern: 'Answer: (\d+)'."
        )
    elif metric != "captured" and pattern:
        yield f"metric_pattern: is for metric captured, not {metric}. Leave it out."
    if pattern and (flaw := flaw_of(pattern)):
        yield f"metric_pattern: is no regular expression: {flaw[:100]}. Mend it."


def _of_classes(values: Mapping[str, Any], said: Said) -> Iterator[str]:
    """What the task says against other settings."""
    task = values.get("task", "chat")
    if task not in ("chat", "classify"):
        yield f"task: is {task[:60]!r}. Write chat or classify."
    labels = [label.strip() for label in values.get("labels", "").split(",")]
    if task != "classify":
        if any(labels):
            yield f"labels: are for task classify. Leave them out, or write {said.write('task', 'classify')}."
        return
    if any(labels):
        if not all(labels) or len(set(labels)) != len(labels):
            yield "labels: has an empty one, or one twice. Write each once, with commas between."
        elif len(labels) == 1:
            yield "labels: is one label, so there is nothing to tell apart. Name two at least."
    if values.get("metric", "exact_match") != "exact_match":
        yield "metric: is for answers. Task classify is told as accuracy and macro F1: leave it out."
    if values.get("private", "").endswith("+head"):
        yield "private: a classifier's head is learnt in any case. Write the blocks alone, such as blocks:4-5."
