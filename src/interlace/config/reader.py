"""Reads `interlace.yaml` and `INTERLACE_*` into `Settings`, and says of every mistake where it is and how to mend it.

The YAML text is composed into nodes, not objects, because only nodes know their line. A walk along the dataclasses in
`settings.py` turns nodes into plain values and collects problems; environment and command line come on top, by the same
checks; the dataclasses are built at the end.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import regex
import yaml

from interlace.config.settings import DEFAULT_MODEL, ModelSettings, Settings
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

_UNITS = {"": 1, "b": 1, "k": 1000, "kb": 1000, "kib": 1 << 10, "m": 10**6, "mb": 10**6, "mib": 1 << 20}
_UNITS |= {"g": 10**9, "gb": 10**9, "gib": 1 << 30, "t": 10**12, "tb": 10**12, "tib": 1 << 40}
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
_KEY_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]{0,127})\}")
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}")


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


@dataclass(frozen=True, slots=True)
class SettingDoc:
    """One line of the settings reference."""

    path: str
    kind: str
    default: str
    doc: str
    environment: str | None


class _Wrong(Exception):
    """A value that cannot be what the setting wants: the problem and its mend."""

    def __init__(self, problem: str, mend: str) -> None:
        super().__init__(problem)
        self.problem, self.mend = problem, mend


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
) -> Settings:
    """Settings from file, then environment, then `overrides` (dotted path → value; None is no override).

    Raises `ConfigError` whose message lists every problem, one a line. A missing provider's key is one unless
    `need_keys` is False, as for commands that only ask a running server.
    """
    env = os.environ if env is None else env
    reader = _Reader(need_keys=need_keys)
    settings = reader.settings(find_config(path, env), env, overrides or {})
    if reader.problems:
        raise ConfigError("\n".join(str(problem) for problem in reader.problems))
    return settings


def check_config(path: Path | None = None, env: Mapping[str, str] | None = None) -> list[Problem]:
    """Every problem of the file and the environment, in the order of the file."""
    env = os.environ if env is None else env
    reader = _Reader()
    reader.settings(find_config(path, env), env, {})
    return sorted(reader.problems, key=lambda problem: (problem.file, problem.line))


def settings_reference() -> list[SettingDoc]:
    """Every setting with its kind, default and meaning, for the reference page."""
    return list(_reference(Settings, ""))


# --- reading -----------------------------------------------------------------------------------------------------


class _Reader:
    """One load: collects values as nested dictionaries and problems as a list."""

    def __init__(self, *, need_keys: bool = True) -> None:
        self.problems: list[Problem] = []
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
        for setting, value in overrides.items():
            if value is not None:
                self._put(values, setting, str(value), f"--{setting}")
        if not values.get("models"):
            values["models"] = ({"name": DEFAULT_MODEL, "checkpoint": DEFAULT_MODEL},)
        if self.problems:
            return Settings()
        settings: Settings = _build(Settings, values)
        if settings.home.parts[:1] == ("~",):
            self.problems.append(Problem("HOME", 0, "home", "is not set", "Set INTERLACE_HOME to a folder"))
        return dataclasses.replace(settings, home=settings.home.absolute())

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
        hints = get_type_hints(cls)
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in () if empty else node.value:
            key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "a key that is no text"
            path = f"{where}.{key}" if where else key
            if key not in fields:
                self._add(_line(key_node), _shown(path), "is no setting", _did_you_mean(key, fields))
            elif key in values:
                self._add(_line(key_node), path, "is given twice", "Remove one of them")
            else:
                values[key] = self._value(value_node, hints[key], fields[key], path)
                lines[key] = _line(key_node)
        engine = str(values.get("engine") or "local")
        for name, field in fields.items():
            only = field.metadata["only"] if values.get("engine", "local") is not None else ""  # else told already
            if name in values and only not in ("", engine):
                mend = f"Remove the line, or write `engine: {only}`"
                self._add(lines[name], f"{where}.{name}", f"is no setting of engine {engine} but of {only}", mend)
            elif name not in values and (_required(field) or (field.metadata["required"] and only == engine)):
                self._add(_line(node), f"{where}.{name}", "is missing", f"Add `{name}:`. {field.metadata['doc']}")
        return values

    def _value(self, node: yaml.Node, hint: Any, field: dataclasses.Field[Any], where: str) -> Any:
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            return self._mapping(node, hint, where)
        if get_origin(hint) is tuple:
            return self._list(node, get_args(hint)[0], field, where)
        if not isinstance(node, yaml.ScalarNode) or node.tag.endswith(":null"):
            self._add(_line(node), where, f"is not {_KINDS[hint]}", "Write one value on the line")
            return None
        try:
            if field.name == "api_key":
                return self._key_reference(node.value)
            if hint is str and not node.tag.endswith(":str") and node.style is None:
                raise _Wrong(f"is not text but `{_shown(node.value)}`", f'Put it in quotes: "{_shown(node.value)}"')
            return _parse(node.value, hint, field)
        except _Wrong as wrong:
            self._add(_line(node), where, wrong.problem, wrong.mend)
            return None

    def _key_reference(self, text: str) -> str:
        """`${NAME}` of a variable that is set. The text is never shown: it may be a key, written where none belongs."""
        found = _KEY_REFERENCE.fullmatch(text)
        if found is None:
            raise _Wrong(
                "is not written as ${NAME}",
                "Put the key into an environment variable and name that: api_key: ${OPENAI_API_KEY}",
            )
        if self.need_keys and not self.env.get(found[1], "").strip():
            raise _Wrong(f"the environment variable {found[1]} is not set", f"Set it: export {found[1]}=...")
        return text

    def _list(self, node: yaml.Node, hint: Any, field: dataclasses.Field[Any], where: str) -> tuple[Any, ...]:
        if not isinstance(node, yaml.SequenceNode):
            self._add(_line(node), where, "is not a list", "Start each item with `- `")
            return ()
        items = tuple(self._value(item, hint, field, f"{where}[{i}]") for i, item in enumerate(node.value))
        if hint is ModelSettings:
            self._check_names(node, items, where)
        return items

    def _check_names(self, node: yaml.Node, models: tuple[dict[str, Any], ...], where: str) -> None:
        seen: set[str] = set()
        for item, model in zip(node.value, models, strict=True):
            name = model.get("name")
            if name in seen:
                self._add(
                    _line(item), where, f"the name {_shown(repr(name))} is given twice", "Give each model its own name"
                )
            if isinstance(name, str):
                seen.add(name)
                if not _MODEL_NAME.fullmatch(name):
                    mend = "Use letters, digits and . _ - : / @, at most 128, a letter or digit first"
                    self._add(_line(item), where, f"{_shown(repr(name))} cannot be a model's name", mend)

    def _put(self, values: dict[str, Any], setting: str, text: str, source: str) -> None:
        """Set the dotted `setting` from text, checked like a value of the file."""
        cls: Any = Settings
        *parents, name = setting.split(".")
        for parent in parents:
            cls = get_type_hints(cls)[parent]
            values = values.setdefault(parent, {})
        field = next(field for field in dataclasses.fields(cls) if field.name == name)
        try:
            values[name] = _parse(text, get_type_hints(cls)[name], field)
        except _Wrong as wrong:
            self.problems.append(Problem(source, 0, setting, wrong.problem, wrong.mend))

    def _add(self, line: int, where: str, problem: str, mend: str) -> None:
        self.problems.append(Problem(self.file, line, where, problem, mend))


# --- values ------------------------------------------------------------------------------------------------------


def _parse(text: str, hint: Any, field: dataclasses.Field[Any]) -> Any:
    """The value of one setting from its text; raises `_Wrong`."""
    value: Any
    if hint is bool:
        value = _boolean(text)
    elif hint is int:
        value = _size(text) if field.name.endswith("_bytes") else _number(text, int)
    elif hint is float:
        value = _number(text, float)
    elif hint is Path:
        value = _path(text)
    elif field.name == "checkpoint" and text.startswith("~"):
        value = str(_path(text))
    elif field.name == "deny":
        value = _pattern(text)
    elif field.name == "base_url":
        value = _base_url(text)
    else:
        value = _nonempty(text)
    _within(value, field)
    return value


def _boolean(text: str) -> bool:
    word = text.strip().lower()
    if word in {"true", "yes", "on", "1"}:
        return True
    if word in {"false", "no", "off", "0"}:
        return False
    raise _Wrong(f"is not true or false but {_shown(repr(text))}", "Write true or false")


def _number(text: str, kind: type[int | float]) -> float:
    try:
        value = kind(text)
    except ValueError:
        raise _Wrong(f"is not {_KINDS[kind]} but {_shown(repr(text))}", f"Write {_KINDS[kind]}") from None
    if not math.isfinite(value):
        raise _Wrong(f"is not a finite number but {_shown(repr(text))}", "Write a finite number")
    return value


def _size(text: str) -> int:
    found = re.fullmatch(r"\s*(\d{1,18})(?:\.(\d{1,6}))?\s*([A-Za-z]*)\s*", text)
    unit = _UNITS.get(found[3].lower()) if found else None
    if found is None or unit is None:
        raise _Wrong(f"is not a size but {_shown(repr(text))}", "Write bytes or a size such as 512MiB or 2GiB")
    fraction = found[2] or ""
    scale: int = 10 ** len(fraction)
    return int(found[1] + fraction) * unit // scale


def _nonempty(text: str) -> str:
    if not text.strip():
        raise _Wrong("is empty", "Write a value or remove the line")
    if "\0" in text:
        raise _Wrong("holds a NUL character", "Remove it")
    return text


def _path(text: str) -> Path:
    try:
        return Path(_nonempty(text)).expanduser()
    except RuntimeError:
        raise _Wrong(f"names the home folder of nobody known: {_shown(repr(text))}", "Write the whole path") from None


def _base_url(text: str) -> str:
    """An http(s) URL without user, query and fragment, and without its last slash."""
    mend = "Write where the API begins, such as https://api.openai.com/v1"
    try:
        url = urlsplit(text)
        strange = url.scheme not in {"http", "https"} or not url.hostname or url.port == 0
    except ValueError:
        strange = True
    if strange or not text.isascii() or any(not c.isprintable() or c in ' \\"<>^`{|}' for c in text):
        raise _Wrong("is not a URL that begins with http:// or https://", mend)
    if "@" in url.netloc:
        raise _Wrong("holds a user name or password", "Remove it, and write `api_key: ${NAME}`")
    if "?" in text or "#" in text:
        raise _Wrong("holds a query or a fragment", mend)
    return text.rstrip("/")


def _pattern(text: str) -> str:
    try:
        pattern = regex.compile(text)
    except (regex.error, OverflowError, RecursionError) as error:
        raise _Wrong(
            f"is not a regular expression: {error}", "Mind brackets and backslashes; quote it with '...'"
        ) from None
    if pattern.search(""):
        raise _Wrong("matches empty text, so it would refuse everything", "Make it need at least one character")
    return text


def _within(value: Any, field: dataclasses.Field[Any]) -> None:
    minimum, maximum, choices = (field.metadata[name] for name in ("minimum", "maximum", "choices"))
    if choices and value not in choices:
        raise _Wrong(f"is {_shown(repr(value))}", f"Use one of {', '.join(choices)}.{_close(str(value), choices)}")
    if minimum is not None and value < minimum:
        raise _Wrong(f"is {value}, which is too little", f"Use {minimum} or more")
    if maximum is not None and value > maximum:
        raise _Wrong(f"is {value}, which is too much", f"Use {maximum} or less")


def _resolve_paths(values: dict[str, Any], folder: Path) -> None:
    """A relative path in the file means relative to the file."""
    if isinstance(home := values.get("home"), Path):
        values["home"] = folder / home
    for model in values.get("models") or ():
        checkpoint = model.get("checkpoint")
        if isinstance(checkpoint, str) and checkpoint.startswith(("./", "../", "~")):
            model["checkpoint"] = str((folder / Path(checkpoint)).absolute())


def _build(cls: Any, values: Mapping[str, Any]) -> Any:
    hints = get_type_hints(cls)
    return cls(**{name: _built(hints[name], value) for name, value in values.items()})


def _built(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value)
    if get_origin(hint) is tuple and dataclasses.is_dataclass(get_args(hint)[0]):
        return tuple(_build(get_args(hint)[0], item) for item in value)
    return value


# --- words -------------------------------------------------------------------------------------------------------


def _shown(text: str) -> str:
    """A piece of the file for a message: one line of bounded length."""
    plain = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:120])
    return plain if len(text) <= 120 else plain + " ..."


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _did_you_mean(key: str, names: Mapping[str, Any]) -> str:
    return _close(key, names).strip() or f"Settings here: {', '.join(names)}"


def _close(word: str, words: Any) -> str:
    close = difflib.get_close_matches(word, list(words), n=1)
    return f" Did you mean `{close[0]}`?" if close else ""


def _reference(cls: Any, where: str) -> Iterator[SettingDoc]:
    hints = get_type_hints(cls)
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


def _documented(path: str, hint: Any, field: dataclasses.Field[Any], variable: str | None) -> SettingDoc:
    choices = field.metadata["choices"]
    kind = " | ".join(choices) if choices else _KINDS.get(hint, "a list of texts")
    if field.default_factory is not dataclasses.MISSING:
        default = "~/.interlace"
    else:
        default = "required" if _required(field) or field.metadata["required"] else str(field.default)
    only = f" (engine {field.metadata['only']})" if field.metadata["only"] else ""
    return SettingDoc(path, kind, default, field.metadata["doc"] + only, variable)
