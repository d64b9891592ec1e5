"""Reads `interlace.yaml` and `INTERLACE_*` into `Settings`, and says of every mistake where it is and how to mend it.

The YAML text is composed into nodes, not objects, because only nodes know their line. A walk along the dataclasses in
`settings.py` turns nodes into plain values and collects problems; environment and command line come on top, by the same
checks; the dataclasses are built at the end.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args, get_origin

import yaml

from interlace.config.adapter_check import faults_of_adapters, owners_of
from interlace.config.added_models import read_added_models
from interlace.config.edge_settings import faults_of_tls
from interlace.config.engines import REMOTE
from interlace.config.route_check import faults_of_routes
from interlace.config.route_settings import RouteSettings
from interlace.config.settings import (
    DEFAULT_MODEL,
    AdapterSettings,
    ModelSettings,
    PlanSettings,
    PriceSettings,
    Settings,
    faults_of_redis,
)
from interlace.config.values import KINDS, Wrong, close_to, hints_of, parse, shown
from interlace.errors import ConfigError

ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {
        "INTERLACE_HOME": "home",
        "INTERLACE_HOST": "host",
        "INTERLACE_PORT": "port",
        "INTERLACE_DRAIN_SECONDS": "drain_seconds",
        "INTERLACE_CONCURRENCY": "limits.concurrency",
        "INTERLACE_QUEUE": "limits.queue",
        "INTERLACE_LOG_LEVEL": "log.level",
        "INTERLACE_LOG_PROMPTS": "log.prompts",
    }
)
"""Which variable sets which setting. `INTERLACE_CONFIG` names the file, `INTERLACE_API_KEY` the key; they are apart."""

_KEY_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]{0,127})\}")
_NAMED: Mapping[Any, str] = {
    ModelSettings: "model",
    AdapterSettings: "adapter",
    PlanSettings: "plan",
    RouteSettings: "route",
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}")


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: where it is, what it is, how to mend it. `line` counts from 1; 0 where there is no line."""

    file: str
    line: int
    where: str
    problem: str
    mend: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.where}: {self.problem}. {self.mend}"


Faults = Callable[[Settings], Iterable[tuple[str, str, str]]]
"""Settings → the setting's dotted path, what is wrong with it, and the mend, of each problem."""


@dataclass(frozen=True, slots=True)
class SettingDoc:
    """One line of the settings reference."""

    path: str
    kind: str
    default: str
    doc: str
    environment: str | None


# --- the front ---------------------------------------------------------------------------------------------------


def find_config(path: Path | None, env: Mapping[str, str]) -> Path | None:
    """The file to read: the one named, else `INTERLACE_CONFIG`, else `interlace.yaml` here if there is one."""
    if path is not None:
        return path
    if named := env.get("INTERLACE_CONFIG"):
        return Path(named)
    here = Path("interlace.yaml")
    return here if here.is_file() else None


def load_settings(
    path: Path | None = None,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    need_keys: bool = True,
    faults: Faults | None = None,
) -> Settings:
    """Settings from file, then environment, then `overrides` (dotted path → value; None is no override). `precision`
    is that of every model on this machine.

    Raises `ConfigError` whose message lists every problem, one a line. A missing provider's key is one unless
    `need_keys` is False, as for commands that only ask a running server. `faults` as for `check_config`.
    """
    env = os.environ if env is None else env
    reader = _Reader(need_keys=need_keys)
    settings = reader.settings(find_config(path, env), env, overrides or {})
    reader.ask(faults, settings)
    if reader.problems:
        raise ConfigError("\n".join(str(problem) for problem in reader.problems))
    return settings


def check_config(
    path: Path | None = None, env: Mapping[str, str] | None = None, faults: Faults | None = None
) -> list[Problem]:
    """Every problem of the file and the environment, in the order of the file.

    `faults` is what other rooms find wrong with settings that are sound in form.
    """
    env = os.environ if env is None else env
    reader = _Reader()
    settings = reader.settings(find_config(path, env), env, {})
    reader.ask(faults, settings)
    return sorted(reader.problems, key=lambda problem: (problem.file, problem.line))


def settings_reference() -> list[SettingDoc]:
    """Every setting with its kind, default and meaning, for the reference page."""
    return list(_reference(Settings, ""))


# --- reading -----------------------------------------------------------------------------------------------------


class _Reader:
    """One load: collects values as nested dictionaries, problems as a list, and the line of each value."""

    def __init__(self, *, need_keys: bool = True) -> None:
        self.problems: list[Problem] = []
        self.lines: dict[str, int] = {}  # of each value, by its path
        self.file = ""
        self.env: Mapping[str, str] = {}
        self.need_keys = need_keys

    def settings(self, path: Path | None, env: Mapping[str, str], overrides: Mapping[str, Any]) -> Settings:
        values: dict[str, Any] = {}
        self.env = env
        if path is not None:
            self.file = str(path)
            node = self._compose(path)
            values = self._mapping(node, Settings, "") if node is not None else {}
            _resolve_paths(values, path.parent)
        for name, setting in ENVIRONMENT.items():
            if text := env.get(name):
                self._put(values, setting, text, name)
        given = {setting: str(value) for setting, value in overrides.items() if value is not None}
        for setting, text in given.items():
            if setting != "precision":
                self._put(values, setting, text, f"--{setting}")
        if not values.get("models"):
            values["models"] = ({"name": DEFAULT_MODEL, "checkpoint": DEFAULT_MODEL},)
        if "precision" in given:
            self._put_precision(values["models"], given["precision"])
        self._check_models_named(values)
        if self.problems:
            return Settings()
        settings: Settings = _build(Settings, values)
        if settings.home.parts[:1] == ("~",):
            self.problems.append(Problem("HOME", 0, "home", "is not set", "Set INTERLACE_HOME to a folder"))
        return dataclasses.replace(settings, home=settings.home.absolute())

    def ask(self, faults: Faults | None, settings: Settings) -> None:
        """Of settings that are sound in form: what others find wrong with them."""
        if faults is None or self.problems:
            return
        for where, problem, mend in faults(settings):
            self.problems.append(Problem(self.file or "the settings", self.lines.get(where, 0), where, problem, mend))

    def _compose(self, path: Path) -> yaml.Node | None:
        try:
            text = path.read_text(encoding="utf-8")
            return yaml.compose(text, Loader=yaml.SafeLoader)
        except (OSError, UnicodeDecodeError) as error:
            self._add(0, "the file", f"cannot be read: {error}", "Name a readable UTF-8 text file")
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 0
            self._add(line, "the file", f"is not YAML: {error.problem}", "Mind indentation, colons and quotes")
        except RecursionError:
            self._add(0, "the file", "nests too deeply", "Mind brackets; no setting has more than three levels")
        except yaml.YAMLError as error:
            self._add(0, "the file", f"is not YAML: {error}", "Mind indentation, colons and quotes")
        return None

    def _mapping(self, node: yaml.Node, cls: type, where: str) -> dict[str, Any]:
        """The values a mapping node gives for dataclass `cls`; unknown, repeated and missing keys are problems."""
        empty = node.tag.endswith(":null")
        if not isinstance(node, yaml.MappingNode) and not empty:
            self._add(_line(node), where or "the file", "is not a mapping", "Write `key: value` lines")
            return {}
        fields = {field.name: field for field in dataclasses.fields(cls)}
        hints = hints_of(cls)
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in () if empty else node.value:
            key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "a key that is no text"
            path = f"{where}.{key}" if where else key
            if key not in fields:
                self._add(_line(key_node), shown(path), "is no setting", _did_you_mean(key, fields))
            elif key in values:
                self._add(_line(key_node), path, "is given twice", "Remove one of them")
            else:
                values[key] = self._value(value_node, hints[key], fields[key], path)
                lines[key] = _line(key_node)
        engine = str(values.get("engine") or "local")
        for name, field in fields.items():
            only = field.metadata["only"] if values.get("engine", "local") is not None else ()  # else told already
            if name in values and only and engine not in only:
                mend = f"Remove the line, or write `engine: {only[0]}`"
                problem = f"is no setting of engine {engine} but of {', '.join(only)}"
                self._add(lines[name], f"{where}.{name}", problem, mend)
            elif name not in values and (_required(field) or (only and engine in field.metadata["required"])):
                self._add(_line(node), f"{where}.{name}", "is missing", f"Add `{name}:`. {field.metadata['doc']}")
        return values

    def _value(self, node: yaml.Node, hint: Any, field: dataclasses.Field[Any], where: str) -> Any:
        self.lines[where] = _line(node)
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            return self._mapping(node, hint, where)
        if get_origin(hint) is tuple:
            return self._list(node, get_args(hint)[0], field, where)
        if not isinstance(node, yaml.ScalarNode) or node.tag.endswith(":null"):
            self._add(_line(node), where, f"is not {KINDS[hint]}", "Write one value on the line")
            return None
        try:
            if field.metadata["secret"]:
                return self._key_reference(node.value, field.name)
            quoted = node.tag.endswith(":str") or node.style is not None or field.metadata["choices"]  # `off` is a word
            if hint is str and not quoted:
                raise Wrong(f"is not text but `{shown(node.value)}`", f'Put it in quotes: "{shown(node.value)}"')
            return parse(node.value, hint, field)
        except Wrong as wrong:
            self._add(_line(node), where, wrong.problem, wrong.mend)
            return None

    def _key_reference(self, text: str, name: str) -> str:
        """`${NAME}` of a variable that is set. The text is never shown: it may be a key, written where none belongs."""
        found = _KEY_REFERENCE.fullmatch(text)
        if found is None:
            raise Wrong(
                "is not written as ${NAME}",
                f"Put it into an environment variable and name that: {name}: ${{OPENAI_API_KEY}}",
            )
        if self.need_keys and not self.env.get(found[1], "").strip():
            raise Wrong(f"the environment variable {found[1]} is not set", f"Set it: export {found[1]}=...")
        return text

    def _list(self, node: yaml.Node, hint: Any, field: dataclasses.Field[Any], where: str) -> tuple[Any, ...]:
        if not isinstance(node, yaml.SequenceNode):
            self._add(_line(node), where, "is not a list", "Start each item with `- `")
            return ()
        items = tuple(self._value(item, hint, field, f"{where}[{i}]") for i, item in enumerate(node.value))
        if hint in _NAMED:
            self._check_names(node, items, where, _NAMED[hint])
            if hint is PlanSettings:
                self._check_lengths(node, items, where)
        elif hint is PriceSettings:
            self._check_prices(node, items, where)
        return items

    def _check_names(self, node: yaml.Node, entries: tuple[dict[str, Any], ...], where: str, what: str) -> None:
        seen: set[str] = set()
        for item, entry in zip(node.value, entries, strict=True):
            name = entry.get("name")
            if name in seen:
                mend = f"Give each {what} its own name"
                self._add(_line(item), where, f"the name {shown(repr(name))} is given twice", mend)
            if isinstance(name, str):
                seen.add(name)
                if not _NAME.fullmatch(name):
                    mend = "Use letters, digits and . _ - : / @, at most 128, a letter or digit first"
                    self._add(_line(item), where, f"{shown(repr(name))} cannot be a {what}'s name", mend)

    def _check_lengths(self, node: yaml.Node, plans: tuple[dict[str, Any], ...], where: str) -> None:
        for item, plan in zip(node.value, plans, strict=True):
            default, largest = plan.get("default_max_tokens"), plan.get("largest_max_tokens")
            if default is not None and largest is not None and default > largest:
                problem = f"default_max_tokens {default} is more than largest_max_tokens {largest}"
                self._add(_line(item), where, problem, "Lower the one or raise the other")

    def _check_prices(self, node: yaml.Node, prices: tuple[dict[str, Any], ...], where: str) -> None:
        seen: set[tuple[Any, Any]] = set()
        for item, price in zip(node.value, prices, strict=True):
            entry = price.get("model"), price.get("since")
            if entry in seen:
                self._add(_line(item), where, f"two prices of {shown(str(entry[0]))} begin together", "Remove one")
            seen.add(entry)
            amounts = price.get("usd_per_million", {})
            if amounts.get("prompt") is None and amounts.get("embedding") is None:
                mend = 'Add `usd_per_million: {prompt: "0.15", completion: "0.60"}`, or zeros for what is free'
                self._add(_line(item), where, "has no amount for prompts", mend)

    def _check_models_named(self, values: Mapping[str, Any]) -> None:
        """Prices and plans name models that are served: a slip of the pen would leave a model without its price."""
        models = [str(model.get("name")) for model in values.get("models", ())]
        served, added = [*models, *owners_of(values.get("models", ()))], self._added(values)
        named = [(f"prices[{i}].model", price.get("model")) for i, price in enumerate(values.get("prices", ()))]
        routes = [str(route.get("name")) for route in values.get("routes", ())]
        for where, problem, mend in faults_of_routes(values.get("routes", ()), values.get("plans", ()), served, added):
            self._add(self.lines.get(where, 0), where, problem, mend)
        for where, problem, mend in faults_of_adapters(values.get("models", ()), values.get("routes", ())):
            self._add(self.lines.get(where, 0), where, problem, mend)
        for where, problem, mend in faults_of_tls(values.get("tls", {})):
            self._add(self.lines[where], where, problem, mend)
        for where, problem, mend in faults_of_redis(values):
            self._add(self.lines.get(where, 0), where, problem, mend)
        for i, model in enumerate(values.get("models", ())):
            if model.get("priced_as"):
                named.append((f"models[{i}].priced_as", model["priced_as"]))
        for i, one in enumerate((values.get("guards") or {}).get("classifiers", ())):
            named.append((f"guards.classifiers[{i}].model", one.get("model")))
            if one.get("refuse") == ():
                where = f"guards.classifiers[{i}].refuse"
                self._add(self.lines.get(where, 0), where, "is empty, so it would refuse nothing", "Name a label")
        for i, plan in enumerate(values.get("plans", ())):
            named += [(f"plans[{i}].models[{j}]", name) for j, name in enumerate(plan.get("models", ()))]
        models, served = [*models, *added], [*served, *added]
        for where, name in named:
            allowed = [*served, *routes] if where.startswith("plans") else models if "guards" in where else served
            if where.startswith("plans") and isinstance(name, str) and name.removesuffix(":*") in models:
                continue  # the model itself, or all its adapters
            if isinstance(name, str) and name not in allowed:
                close = close_to(name, allowed) or f" Served are: {shown(', '.join(allowed))}"
                problem = f"names {shown(repr(name))}, which is not among the models"
                self._add(self.lines[where], where, problem, close.strip())

    def _added(self, values: Mapping[str, Any]) -> list[str]:
        """Models that were added by command, which the file may name, too."""
        home = values.get("home")
        try:
            return [one.name for one in read_added_models(home if isinstance(home, Path) else Settings().home)]
        except ConfigError as error:
            problem, _, mend = error.message.removesuffix(".").rpartition(". ")
            self.problems.append(Problem("the home folder", 0, "models", problem, mend))
            return []

    def _put_precision(self, models: Iterable[dict[str, Any]], text: str) -> None:
        """Let every model on this machine have that precision, whatever the file says."""
        for model in models:
            if model.get("engine", "local") == "local" and not self.problems:
                self._put(model, "precision", text, "--precision", ModelSettings)

    def _put(self, values: dict[str, Any], setting: str, text: str, source: str, cls: Any = Settings) -> None:
        """Set the dotted `setting` from text, checked like a value of the file."""
        *parents, name = setting.split(".")
        for parent in parents:
            cls = hints_of(cls)[parent]
            values = values.setdefault(parent, {})
        field = next(field for field in dataclasses.fields(cls) if field.name == name)
        try:
            values[name] = parse(text, hints_of(cls)[name], field)
        except Wrong as wrong:
            self.problems.append(Problem(source, 0, setting, wrong.problem, wrong.mend))

    def _add(self, line: int, where: str, problem: str, mend: str) -> None:
        self.problems.append(Problem(self.file, line, where, problem, mend))


def _resolve_paths(values: dict[str, Any], folder: Path) -> None:
    """A relative path in the file means relative to the file."""
    if isinstance(home := values.get("home"), Path):
        values["home"] = folder / home
    for name, path in (values.get("tls") or {}).items():
        if isinstance(path, Path):
            values["tls"][name] = (folder / path).absolute()
    for model in values.get("models") or ():
        checkpoint = model.get("checkpoint")
        if isinstance(checkpoint, str) and checkpoint.startswith(("./", "../", "~")):
            model["checkpoint"] = str((folder / Path(checkpoint)).absolute())
        for adapter in model.get("adapters") or ():
            if isinstance(adapter.get("folder"), str):
                adapter["folder"] = str((folder / adapter["folder"]).absolute())


def _build(cls: Any, values: Mapping[str, Any]) -> Any:
    hints = hints_of(cls)
    return cls(**{name: _built(hints[name], value) for name, value in values.items()})


def _built(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value)
    if get_origin(hint) is tuple and dataclasses.is_dataclass(get_args(hint)[0]):
        return tuple(_build(get_args(hint)[0], item) for item in value)
    return value


# --- words -------------------------------------------------------------------------------------------------------


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _did_you_mean(key: str, names: Mapping[str, Any]) -> str:
    return close_to(key, names).strip() or f"Settings here: {', '.join(names)}"


def _reference(cls: Any, where: str) -> Iterator[SettingDoc]:
    hints = hints_of(cls)
    variables = {path: name for name, path in ENVIRONMENT.items()}
    for field in dataclasses.fields(cls):
        path, hint = f"{where}{field.name}", hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _reference(hint, f"{path}.")
        elif get_origin(hint) is tuple and dataclasses.is_dataclass(get_args(hint)[0]):
            yield SettingDoc(path, "a list", "", field.metadata["doc"], None)
            yield from _reference(get_args(hint)[0], f"{path}[].")
        else:
            yield _documented(path, hint, field, variables.get(path))


def _engines(only: tuple[str, ...]) -> str:
    """Which engines a setting belongs to, as the reference says it."""
    if not only:
        return ""
    if only == REMOTE:
        return " (engines of providers)"
    return f" (engine{'s' if len(only) > 1 else ''} {', '.join(only)})"


def _documented(path: str, hint: Any, field: dataclasses.Field[Any], variable: str | None) -> SettingDoc:
    choices = field.metadata["choices"]
    kind = " | ".join(choices) if choices else KINDS.get(hint, "a list of texts")
    if field.default_factory is not dataclasses.MISSING:
        default = "~/.interlace"
    elif field.default is None:
        default = "none"
    else:
        default = "required" if _required(field) or field.metadata["required"] else str(field.default)
    only = _engines(field.metadata["only"])
    return SettingDoc(path, kind, default, field.metadata["doc"] + only, variable)
