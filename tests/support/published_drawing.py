"""Random requests of the published shapes: `tests.support.published`, drawn.

Types do not say everything that an API asks of a request: what is an address, which ids belong together, how large a
number may be. That is said here, by the name of a field; all else comes from the SDKs' own types.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from interlace.gateway.dialects import DIALECTS
from interlace.gateway.translation import Denied
from tests.support.drawing import Draw, Json
from tests.support.published import Either, Known, Many, Named, Plain, Record, Shape, Words, body_of, join, known_by

MEDIA = ("image/png", "image/jpeg", "image/gif", "image/webp")
DEEPEST = 7

Own = Callable[[Draw], Any]


def _image(draw: Draw) -> str:
    return draw.one((f"https://example.com/{draw.name()}.png", f"data:{draw.one(MEDIA)};base64,{draw.base64()}"))


def _file(draw: Draw) -> str:
    kind = draw.one(("application/pdf", "text/plain", "text/markdown", "application/json"))
    return f"data:{kind};base64,{draw.base64()}"


def _bias(draw: Draw) -> Json:
    return {str(draw.random.randint(0, 50000)): draw.random.randint(-100, 100) for _ in range(2)}


def _between(low: float, high: float) -> Own:
    """A number; a whole one where the bounds are."""
    if isinstance(low, int):
        return lambda draw: draw.random.randint(low, int(high))
    return lambda draw: low + draw.random.randint(0, 8) * (high - low) / 8


def _pairs(draw: Draw) -> Json:
    return {draw.name(): draw.text() for _ in range(draw.random.randint(1, 2))}


_COMMON: dict[str, Own] = {
    "model": lambda _: "m",
    "temperature": _between(0.0, 1.0),
    "top_p": _between(0.0, 1.0),
    "top_k": _between(0, 100),
    "n": _between(1, 4),
    "seed": _between(-(1 << 62), 1 << 62),
    "presence_penalty": _between(-2.0, 2.0),
    "frequency_penalty": _between(-2.0, 2.0),
    "logit_bias": _bias,
    "top_logprobs": _between(0, 20),
    "max_tokens": _between(1, 9000),
    "metadata": _pairs,
    "messages[].content[].image_url.url": _image,
    "messages[].content[].input_audio.data": lambda draw: draw.base64(),
    "messages[].content[].file.file_data": _file,
    "messages[].content[].file.filename": lambda draw: f"{draw.name()} é.txt",
    "messages[].tool_calls[].function.name": lambda draw: draw.name(),
    "messages[].tool_calls[].function.arguments": lambda draw: draw.arguments(),
    "messages[].tool_calls[].custom.name": lambda draw: draw.name(),
    "messages[].tool_calls[].id": lambda draw: draw.fresh("call"),
}
_OWN: Mapping[str, dict[str, Own]] = {
    "openai.chat": _COMMON
    | {
        "max_completion_tokens": _between(1, 9000),
        "tools[].function.name": lambda draw: draw.fresh("f"),
        "tools[].custom.name": lambda draw: draw.fresh("f"),
        "tools[].function.parameters": lambda draw: draw.schema(),
        "tool_choice.function.name": lambda draw: draw.name(),
        "tool_choice.allowed_tools.tools": lambda _: [{"type": "function", "function": {"name": "f"}}],
        "response_format.json_schema.name": lambda draw: draw.name(),
        "response_format.json_schema.schema": lambda draw: draw.schema(),
    },
    "openai.completions": _COMMON
    | {
        "logprobs": _between(0, 5),
        "best_of": _between(1, 4),
        "prompt": lambda draw: draw.one((draw.text(), [draw.random.randint(0, 50000) for _ in range(3)])),
    },
    "openai.embeddings": {"model": lambda _: "m", "input": lambda draw: draw.text(), "dimensions": _between(1, 3072)},
    "openai.responses": _COMMON
    | {
        "metadata": _pairs,
        "max_output_tokens": _between(1, 9000),
        "max_tool_calls": _between(1, 9),
        "input[].name": lambda draw: draw.name(),
        "input[].arguments": lambda draw: draw.arguments(),
        "input[].call_id": lambda draw: draw.fresh("call"),
        "input[].id": lambda draw: draw.fresh("item"),
        "input[].encrypted_content": lambda draw: draw.base64(),
        "tools[].name": lambda draw: draw.fresh("f"),
        "tools[].parameters": lambda draw: draw.schema(),
        "tool_choice.name": lambda draw: draw.name(),
        "tool_choice.tools": lambda _: [{"type": "function", "name": "f"}],
        "text.format.name": lambda draw: draw.name(),
        "text.format.schema": lambda draw: draw.schema(),
        **{
            f"input[].{where}[].{name}": own
            for where in ("content", "output")
            for name, own in (
                ("image_url", _image),
                ("file_data", _file),
                ("file_url", lambda draw: f"https://example.com/{draw.name()}.pdf"),
                ("filename", lambda draw: f"{draw.name()} é.txt"),
            )
        },
    },
    "anthropic.messages": _COMMON
    | {
        "metadata": lambda draw: {"user_id": draw.words()},
        "messages[].content[].title": lambda draw: f"{draw.name()} é.txt",
        "messages[].content[].content[].title": lambda draw: f"{draw.name()} é.txt",
        "thinking.budget_tokens": _between(1024, 9000),
        "messages[].content[].id": lambda draw: draw.fresh("toolu"),
        "messages[].content[].name": lambda draw: draw.name(),
        "messages[].content[].input": lambda draw: draw.object(),
        "messages[].content[].signature": lambda draw: draw.base64(),
        "messages[].content[].data": lambda draw: draw.base64(),
        "tools[].name": lambda draw: draw.fresh("f"),
        "tools[].input_schema": lambda draw: draw.schema(),
        "output_config.format.schema": lambda draw: draw.schema(),
        "stop_sequences": lambda draw: [draw.words() for _ in range(draw.random.randint(1, 4))],
        **{
            f"messages[].content[].{inner}source.url": lambda draw: f"https://example.com/{draw.name()}.pdf"
            for inner in ("", "content[].")
        },
    },
}
_WITHOUT = ("file_id", "conversation_id")  # what a request names is put in its place before a dialect's parser reads it
_BEFORE = ("item_reference",)


class Publisher:
    """Draws bodies of a dialect. `likely` is how likely a field that may be left out is said; `exotic`, one that is
    refused, or an object of a kind that is."""

    def __init__(self, dialect: str, draw: Draw, likely: float = 0.12, exotic: float = 0.01, forced: str = "") -> None:
        self.draw = draw
        self._forced = forced
        self.likely, self.exotic = likely, exotic
        self._own = _OWN[dialect]
        self._body = body_of(dialect)
        table = DIALECTS[dialect].table
        self._denied: Known = known_by([path for path, place in table.items() if isinstance(place, Denied)])
        self._refused = frozenset(path for path, place in table.items() if isinstance(place, Denied))

    def body(self) -> Json:
        """A body as the types have it."""
        made: Json = self._of(self._body, "", 0)
        return made

    def leads(self) -> bool:
        """Whether what is forced is anywhere in the types."""
        return self._leads(self._body, "")

    def _of(self, shape: Shape, path: str, depth: int) -> Any:
        draw = self.draw
        if (own := self._own.get(path)) is not None and not self._leads(shape, path):
            return own(draw)
        match shape:
            case Plain(kind):
                return True if kind is bool and path == self._forced else self._plain(kind)
            case Words(values):
                return values[-1] if path == self._forced else draw.one(values)
            case Many(item):
                return [self._of(item, f"{path}[]", depth) for _ in range(draw.random.randint(1, 2))]
            case Named(value):
                return {draw.name(): self._of(value, path, depth) for _ in range(draw.random.randint(1, 2))}
            case Either(shapes):
                return self._of(self._chosen(shapes, path), path, depth)
            case Record():
                return self._record(shape, path, depth)

    def _plain(self, kind: type) -> Any:
        draw = self.draw
        if kind is str:
            return draw.words()
        if kind is bool:
            return draw.one((False, True))
        if kind is int:
            return draw.random.randint(1, 9000)
        return draw.random.randint(0, 8) / 8 if kind is float else draw.value() or "a"

    def _chosen(self, shapes: tuple[Shape, ...], path: str) -> Shape:
        """One of several; seldom one that is refused."""
        if (leading := [shape for shape in shapes if self._leads(shape, path)]) and path:
            return next((shape for shape in leading if not self._kind_refused(shape, path)), leading[0])
        plain = [shape for shape in shapes if not self._kind_refused(shape, path)]
        others = [shape for shape in shapes if shape not in plain and not self._before(shape)]
        return self.draw.one(others if others and (not plain or self.draw.chance(self.exotic)) else plain)

    def _kind_refused(self, shape: Shape, path: str) -> bool:
        if not isinstance(shape, Record) or (tag := shape.tag()) is None:
            return False
        return (
            self._before(shape)
            or all(self._denied(join(path, f"{tag[0]}={word}")) for word in tag[1])
            or any(join(path, name) in self._refused for name in shape.required)
        )

    @staticmethod
    def _before(shape: Shape) -> bool:
        """Whether it names what the gateway puts in its place."""
        if not isinstance(shape, Record):
            return False
        tag = shape.tag()
        return (tag is not None and tag[1][0] in _BEFORE) or bool(shape.required & set(_WITHOUT))

    def _record(self, shape: Record, path: str, depth: int) -> Json:
        made: Json = {}
        for name, inner in shape.fields.items():
            where = join(path, name)
            if name in _WITHOUT:
                continue
            if name not in shape.required and not self._leads(inner, where):
                likely = self.likely if depth == 0 else 0.25 if depth < DEEPEST else 0.0
                if not self.draw.chance(self.exotic / 2 if self._wholly_refused(where) else likely):
                    continue
            made[name] = self._of(inner, where, depth + 1)
        return made

    def _leads(self, shape: Shape, path: str) -> bool:
        """Whether what is forced lies in the shape."""
        if not self._forced or not self._forced.startswith(path):
            return False
        match shape:
            case Either(shapes):
                return any(self._leads(one, path) for one in shapes)
            case Many(item):
                return path == self._forced or self._leads(item, f"{path}[]")
            case Record():
                name, words = shape.tag() or ("", ())
                if path == self._forced or any(self._is(join(path, f"{name}={word}")) for word in words):
                    return True
                fields = ((join(path, field), inner) for field, inner in shape.fields.items())
                return any(self._leads(inner, where) for where, inner in fields)
        return path == self._forced

    def _is(self, kind: str) -> bool:
        return self._forced in {kind, re.sub(r"_2\d{3}\w*$", "", kind)}

    def _wholly_refused(self, path: str) -> bool:
        return any(row == path or ("=" not in row and row.startswith(f"{path}.")) for row in self._refused)


# --- what belongs together ---------------------------------------------------------------------------------------


def _chat(draw: Draw, body: Json) -> None:
    """Results follow their calls; the user speaks last."""
    given, turns = body["messages"], []
    results = [turn for turn in given if turn["role"] == "tool"]
    for turn in given:
        if turn["role"] == "tool":
            continue
        if turn["role"] == "assistant" and not {"content", "refusal", "tool_calls"} & set(turn):
            turn["content"] = draw.text()
        turns.append(turn)
        for call in turn.get("tool_calls", ()) if turn["role"] == "assistant" else ():
            result = results.pop() if results else {"role": "tool", "content": draw.text()}
            turns.append(result | {"tool_call_id": call["id"]})
    body["messages"] = [*turns, {"role": "user", "content": draw.text()}]
    for turn in body["messages"]:
        for part in turn["content"] if isinstance(turn.get("content"), list) else ():
            if part["type"] == "file":
                part["file"].setdefault("file_data", _file(draw))
        if "name" in turn and turn["role"] != "function":
            turn["name"] = draw.name()
    if "max_completion_tokens" in body:
        body.pop("max_tokens", None)
    if "top_logprobs" in body:
        body["logprobs"] = True
    if body.get("modalities"):
        body["modalities"] = ["text"]
    if isinstance(schema := body.get("response_format", {}).get("json_schema"), dict):
        schema.setdefault("schema", draw.schema())
    offered = [{"type": (kind := tool["type"]), kind: {"name": tool[kind]["name"]}} for tool in body.get("tools", ())]
    choice = body.get("tool_choice")
    if choice is not None and not offered:
        body["tool_choice"] = "none"
    elif isinstance(choice, dict) and "allowed_tools" in choice:
        choice["allowed_tools"]["tools"] = [offered[-1]]
    elif isinstance(choice, dict):
        body["tool_choice"] = offered[0]
    _streams(body)


def _streams(body: Json) -> None:
    if "stream_options" in body:
        body["stream"] = True


def _completions(draw: Draw, body: Json) -> None:
    """`best_of` is not more than there are answers."""
    if "best_of" in body:
        body["best_of"] = body.get("n", 1)
    if isinstance(stop := body.get("stop"), list):
        body["stop"] = stop[:4]
    if body.get("prompt") is None:
        body["prompt"] = draw.text()
    _streams(body)


_CALLS = ("function_call", "custom_tool_call", "local_shell_call", "shell_call", "apply_patch_call")


def _output_of(draw: Draw, call: Json, outputs: list[Json]) -> Json:
    """What came of a call: one of those that were drawn, or a short one."""
    kind = f"{call['type']}_output"
    drawn = next((output for output in outputs if output["type"] == kind), None)
    if drawn is not None:
        outputs.remove(drawn)
    said: Any = [{"stdout": draw.text(), "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}]
    short = {"type": kind, "output": said if kind == "shell_call_output" else draw.text(), "status": "completed"}
    id = "id" if kind == "local_shell_call_output" else "call_id"  # as the types have it
    return (drawn or short) | {id: call["call_id"]}


def _turns(draw: Draw, given: list[Json]) -> list[Json]:
    """Outputs follow their calls; the user speaks last."""
    items: list[Json] = []
    outputs = [item for item in given if item.get("type") in {f"{kind}_output" for kind in _CALLS}]
    for item in [item for item in given if item not in outputs]:
        items.append(item)
        if item.get("type") in _CALLS:
            items.append(_output_of(draw, item, outputs))
    return [*items, {"role": "user", "content": draw.text()}]


def _responses(draw: Draw, body: Json) -> None:
    """Outputs follow their calls, and a choice has something to choose; a picture and a document lie in one place."""
    if not isinstance(body.get("input"), list):
        body.setdefault("input", draw.text())
    else:
        body["input"] = _turns(draw, body["input"])
        for item in body["input"]:
            for name in ("content", "output"):
                for part in item[name] if isinstance(item.get(name), list) else ():
                    _placed(draw, part)
    body.setdefault("model", "m")
    if body.get("background"):
        body["store"] = True
    if body.get("truncation") == "auto" and not draw.chance(0.05):
        body["truncation"] = "disabled"
    if "tools" in body:  # of those without a name there is one of a kind
        body["tools"] = list({tool.get("name", tool["type"]): tool for tool in body["tools"]}.values())
    offered = [_chosen(tool) for tool in body.get("tools", ()) if tool["type"] in _OFFERED]
    choice = body.get("tool_choice")
    if choice is not None and not offered and (choice == "required" or isinstance(choice, dict)):
        body["tool_choice"] = "none"
    elif isinstance(choice, dict) and choice["type"] == "allowed_tools":
        choice["tools"] = [offered[-1]]
    elif isinstance(choice, dict) and choice["type"] in _OFFERED:
        body["tool_choice"] = offered[0]
    _streams(body)


_OFFERED = ("function", "custom", "local_shell", "shell", "apply_patch")


def _chosen(tool: Json) -> Json:
    return {name: tool[name] for name in ("type", "name") if name in tool}


def _placed(draw: Draw, part: Json) -> None:
    if part.get("type") == "input_image":
        part.setdefault("image_url", _image(draw))
    if part.get("type") == "input_file":
        if "file_url" in part:
            part.pop("file_data", None)
        else:
            part.setdefault("file_data", _file(draw))


_SAID_BY_THE_MODEL = {"thinking", "redacted_thinking", "tool_use"}
_OTHERS = {
    "user": {*_SAID_BY_THE_MODEL, "tool_result"},  # results follow their calls below
    "assistant": {"image", "document", "tool_result"},
    "system": {*_SAID_BY_THE_MODEL, "image", "document", "tool_result"},
}  # blocks that the API refuses in turns of a role, as its types do not say


def _messages(draw: Draw, body: Json) -> None:
    """A call has its result in the turn after it, and nothing else has one; data is base64 where it is said to be."""
    turns: list[Json] = []
    for turn in body["messages"]:
        if isinstance(turn["content"], list):
            others = _OTHERS[turn["role"]]
            kept = [block for block in turn["content"] if block["type"] not in others]
            turn["content"] = sorted(kept, key=lambda block: block["type"] == "tool_use") or "a"
        turns.append(turn)
        calls = _calls(turn)
        if calls:
            turns.append({"role": "user", "content": [_result(draw, id) for id in calls]})
    body["messages"] = [*turns, {"role": "user", "content": draw.text()}]
    _sourced(draw, body["messages"])
    names = [tool["name"] for tool in body.get("tools", ()) if "name" in tool]
    choice = body.get("tool_choice")
    if choice is not None and not names:
        body["tool_choice"] = {"type": "none"}
    elif choice is not None and choice["type"] == "tool":
        choice["name"] = names[0]


def _calls(turn: Json) -> list[str]:
    content = turn["content"] if isinstance(turn["content"], list) else []
    return [block["id"] for block in content if block.get("type") == "tool_use"]


def _result(draw: Draw, id: str) -> Json:
    return {"type": "tool_result", "tool_use_id": id, "content": draw.text()}


def _sourced(draw: Draw, value: Any) -> None:
    """Base64 where base64 is said to be."""
    if isinstance(value, list):
        for one in value:
            _sourced(draw, one)
    elif isinstance(value, dict):
        if value.get("type") == "base64":
            value["data"] = draw.base64()
        for name, one in value.items():
            if name not in {"input", "input_schema", "schema"}:
                _sourced(draw, one)


_SETTLED: Mapping[str, Callable[[Draw, Json], None]] = {
    "openai.chat": _chat,
    "openai.completions": _completions,
    "openai.responses": _responses,
    "anthropic.messages": _messages,
}
PUBLISHED = tuple(_SETTLED)


def published(dialect: str, random: Random, likely: float = 0.12, exotic: float = 0.01) -> Json:
    """A random body of a dialect, as its official SDK takes it."""
    draw = Draw(random, {})
    body = Publisher(dialect, draw, likely, exotic).body()
    _SETTLED[dialect](draw, body)
    return body


def refused(dialect: str, random: Random, row: str) -> Json:
    """A body that says what this row of the dialect's table refuses."""
    draw = Draw(random, {})
    body = Publisher(dialect, draw, 0.0, 0.0, row).body()
    body.setdefault("model", "m")
    if dialect == "openai.responses":
        body.setdefault("input", "a")
    if dialect == "anthropic.messages":
        said = body["messages"][0]["content"] if row.startswith("messages") else "a"
        role = "assistant" if isinstance(said, list) and said[0]["type"] in _SAID_BY_THE_MODEL else "user"
        body["messages"] = [{"role": role, "content": said}]
        _sourced(draw, body["messages"])
    return body


def is_published(dialect: str, row: str) -> bool:
    """Whether the types have what a row is about."""
    return Publisher(dialect, Draw(Random(0), {}), forced=row).leads()
