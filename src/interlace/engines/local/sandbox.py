"""Jinja2 for chat templates, which come with checkpoints and are not trusted.

jinja2's immutable sandbox keeps a template from Python's internals and from changing what it is given. On top of it,
work is bounded: every loop turn and every call costs a tick, every operator and filter that can make a string grow is
checked before it runs, and the clock is looked at with each tick.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from datetime import datetime
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_TICKS = 500_000
MAX_SECONDS = 2.0  # of the rendering thread's own time
MAX_TEXT = 1 << 24  # characters, of the output and of any string on the way
_MAX_NUMBER = 1 << 16  # as an argument: a width, an indentation, a count

# Filters that only lay text out, for human readers; a width is all they need to fill the memory.
_DROPPED_FILTERS = ("center", "filesizeformat", "format", "pprint", "random", "urlize", "wordwrap", "xmlattr")


class Refused(TemplateError):
    """The template itself said no, through `raise_exception`."""


class _Meter:
    """How much work one rendering has done."""

    def __init__(self) -> None:
        self.ticks = 0
        self.deadline = time.thread_time() + MAX_SECONDS

    def tick(self) -> None:
        self.ticks += 1
        if self.ticks > MAX_TICKS or time.thread_time() > self.deadline:
            raise SecurityError("the template does too much work")


_meter: ContextVar[_Meter] = ContextVar("_meter")


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment chat templates expect (as transformers sets it up), with bounded work."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
        for name in _DROPPED_FILTERS:
            del self.filters[name]
        for name in ("indent", "replace", "join", "tojson", "batch", "slice"):
            self.filters[name] = _bounded(self.filters[name] if name != "tojson" else _tojson)
        self.filters["_counted"] = _counted
        self.filters["_joined"] = _joined
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Metering().visit(super()._parse(source, name, filename))
        return tree

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Every call a template makes passes here."""
        _meter.get().tick()
        method = getattr(obj, "__wrapped__", obj)  # jinja2 wraps str.format
        _check_method(method)
        _check_arguments(getattr(method, "__self__", None), args, kwargs)
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Every intercepted operator passes here."""
        _check_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)


def render(template: Template, variables: dict[str, Any]) -> str:
    """The whole text of a template; `TemplateError` (or what its expressions raise) when it cannot be had."""
    token = _meter.set(_Meter())
    try:
        pieces, size = [], 0
        for piece in template.generate(variables):
            size += len(piece)
            _check_size(size)
            pieces.append(piece)
        return "".join(pieces)
    finally:
        _meter.reset(token)


class _Metering(NodeTransformer):
    """Puts a counter around what loops iterate over, and a check on `~`, the one operator jinja2 can't intercept."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - jinja2's name
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "_counted", [], [], None, None).set_lineno(node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        parts = nodes.List(node.nodes).set_lineno(node.lineno)
        return nodes.Filter(parts, "_joined", [], [], None, None).set_lineno(node.lineno)


class _Generation(Extension):
    """`{% generation %}` marks what an assistant wrote, for training; here it is only its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 reads a plain set

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _counted(items: Any) -> Any:
    """The same items, each for a tick. What has a length keeps it, for `loop.length` and `loop.last`."""
    meter = _meter.get()
    if not isinstance(items, Iterable):
        return items  # jinja2 says what is wrong with it
    return _ticking(items, meter)


def _ticking(items: Iterable[Any], meter: _Meter) -> Iterator[Any]:
    for item in items:
        meter.tick()
        yield item


def _joined(parts: list[Any]) -> str:
    texts = [str(part) for part in parts]
    _check_size(sum(map(len, texts)))
    return "".join(texts)


def _bounded(filter_: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, refused when its arguments would make it write without measure."""

    def checked(*args: Any, **kwargs: Any) -> Any:
        # A filter that wants the context or environment gets it first; the value follows.
        given = args[1:] if hasattr(filter_, "jinja_pass_arg") else args
        _check_arguments(given[0] if given else None, given[1:], kwargs)
        return filter_(*args, **kwargs)

    if hasattr(filter_, "jinja_pass_arg"):
        checked.jinja_pass_arg = filter_.jinja_pass_arg  # type: ignore[attr-defined]
    return checked


def _check_arguments(value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """`"x".ljust(10 ** 9)`, `s.replace("", s)`, `s.join(list)`: all multiply a size by an argument."""
    given = (*args, *kwargs.values())
    if any(isinstance(item, int) and item > _MAX_NUMBER for item in given):
        raise SecurityError("the template uses too large a number")
    sizes = [len(item) for item in given if isinstance(item, str | list | tuple)]
    if isinstance(value, str | list | tuple) and sizes:
        _check_size((len(value) + 1) * max(sizes) if isinstance(value, str) else len(value) * max(sizes))


def _check_method(method: Any) -> None:
    """`"{:1000000000}".format(1)`: a width inside the text."""
    layout = getattr(method, "__self__", None)
    if isinstance(layout, str) and method.__name__ in {"format", "format_map"} and re.search(r"\d{4}", layout):
        raise SecurityError("the template formats with a width")


def _check_operator(operator: str, left: Any, right: Any) -> None:
    if operator == "**" and isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > 4096:
        raise SecurityError("the template raises to too high a power")
    if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
        _check_size(len(left) + len(right))
    if operator == "*":
        for sequence, count in ((left, right), (right, left)):
            if isinstance(sequence, str | list | tuple) and isinstance(count, int):
                _check_size(len(sequence) * count)
        if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > 4096:
            raise SecurityError("the template uses too large a number")
    if operator == "%" and isinstance(left, str) and ("*" in left or any(map(str.isdigit, left))):
        raise SecurityError("the template formats with a width")


def _check_size(characters: int) -> None:
    if characters > MAX_TEXT:
        raise SecurityError(f"the template makes a text of more than {MAX_TEXT} characters")


def _raise_exception(message: Any) -> None:
    raise Refused(str(message))


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)  # noqa: DTZ005 - templates mean the local date, as transformers does


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it: jinja2's own would escape HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
