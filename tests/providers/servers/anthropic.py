"""Anthropic's Messages API on loopback: strict about what it gets, as the published reference has it (fields and blocks
of `POST /v1/messages` and `/v1/messages/count_tokens`, as the SDK 2.14 types them), and streaming as the page on
streaming says. Sampling parameters, which the SDK's types no longer have, are taken as its migration guide says.

The `model` says what comes back; see `SCRIPTS`. It shares nothing with the product.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.providers.servers.http import Asked, Told, serving
from tests.providers.servers.sayings import SAYINGS

KEY = "sk-ant-test-0123456789"
VERSIONS = ("2023-06-01", "2026-10-21")
SEALED, REDACTED = (
    "EqQBCgIYAhIM1gbcDa9GJwZA2b3hGgxBdjrkzLoky3dl1pk=",
    "EmwKAhgBEgy3va3pzix/LafPsn4aDFIT2Xlxh0L5L8rLVyI=",
)
USAGE = {"input_tokens": 11, "cache_creation_input_tokens": 3, "cache_read_input_tokens": 20, "output_tokens": 7}

_TEXT = {"type", "text", "cache_control", "citations"}
_BLOCKS = {
    "text": _TEXT,
    "image": {"type", "source", "cache_control", "transformations"},
    "document": {"type", "source", "title", "context", "citations", "cache_control"},
    "tool_use": {"type", "id", "name", "input", "cache_control", "caller", "toolset_name"},
    "tool_result": {"type", "tool_use_id", "content", "is_error", "cache_control", "toolset_name"},
    "thinking": {"type", "thinking", "signature"},
    "redacted_thinking": {"type", "data"},
}
_IN_ROLE = {
    "user": {"text", "image", "document", "tool_result"},
    "assistant": {"text", "tool_use", "thinking", "redacted_thinking"},
    "system": {"text"},
}
_SOURCES = {
    "base64": {"type", "media_type", "data"},
    "url": {"type", "url"},
    "text": {"type", "media_type", "data"},
}
_COUNTED = {
    "model", "messages", "system", "tools", "tool_choice", "thinking", "output_config", "cache_control", "speed",
    "user_profile_id", "workspace_id",
}  # fmt: skip
_FIELDS = _COUNTED | {
    "max_tokens", "metadata", "service_tier", "stop_sequences", "stream", "container", "diagnostics", "inference_geo",
    "temperature", "top_p", "top_k",
}  # fmt: skip
_BETAS = {  # what each switches on: a field, or a display of thoughts
    "context-management-2025-06-27": "context_management",
    "thinking-display-updates-2026-08-18": "updates",
}
_TOOL = {
    "name", "description", "input_schema", "cache_control", "strict", "type", "defer_loading", "eager_input_streaming",
    "input_examples", "allowed_callers",
}  # fmt: skip


@dataclass
class Anthropic:
    """A running server and the bodies it accepted, with their paths."""

    url: str = ""
    seen: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    sensible: bool = False  # whatever the model is called, it answers what is asked
    betas: list[str] = field(default_factory=list)  # the header of each request

    @property
    def last(self) -> dict[str, Any]:
        """The body of the last request."""
        return self.seen[-1][1]


class Refusal(Exception):
    """An error of the API."""

    def __init__(self, status: int, type: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.type, self.message, self.headers = status, type, message, headers

    def body(self) -> bytes:
        """The error object."""
        error = {"type": self.type, "message": self.message}
        return json.dumps({"type": "error", "error": error, "request_id": "req_011CSHoEeqs5C35K2UUqR7Fy"}).encode()


@contextmanager
def running_anthropic() -> Iterator[Anthropic]:
    """Start one."""
    made = Anthropic()
    with serving(lambda asked: _answer(made, asked)) as url:
        made.url = url
        yield made


def _answer(server: Anthropic, asked: Asked) -> Told:
    try:
        if KEY not in (asked.headers.get("x-api-key"), asked.headers.get("authorization", "").removeprefix("Bearer ")):
            raise Refusal(401, "authentication_error", "invalid x-api-key")
        if asked.headers.get("anthropic-version") not in VERSIONS:
            raise _bad("anthropic-version: header is required")
        body = json.loads(asked.body)
        path = asked.path.partition("?")[0]
        betas = asked.headers.get("anthropic-beta", "")
        server.betas.append(betas)
        more = {field for beta, field in _BETAS.items() if beta in betas.split(",")}
        if path == "/v1/messages/count_tokens":
            _check(body, _COUNTED | more)
            server.seen.append((path, body))
            return _whole({"input_tokens": _words(body)})
        if path != "/v1/messages":
            raise Refusal(404, "not_found_error", "Not found")
        _check(body, _FIELDS | more)
        _check_limits(body)
        server.seen.append((path, body))
        if server.sensible:
            from tests.providers.servers.anthropic_sensible import sensible

            return sensible(body)
        name = body["model"].partition(":")
        if name[0] not in SCRIPTS:
            raise Refusal(404, "not_found_error", f"model: {body['model']}")
        return SCRIPTS[name[0]](body, name[2])
    except Refusal as refusal:
        return Told(refusal.status, refusal.body(), {"Content-Type": "application/json", **refusal.headers})


def _bad(message: str) -> Refusal:
    return Refusal(400, "invalid_request_error", message)


# --- what it takes -----------------------------------------------------------------------------------------------


def _check(body: dict[str, Any], known: set[str]) -> None:
    for name in ("model", "messages"):
        if name not in body:
            raise _bad(f"{name}: Field required")
    _only(body, known, "")
    marks: list[str] = []
    system = body.get("system", "")
    if not isinstance(system, str):
        for i, block in enumerate(system):
            _check_block(block, "system", f"system.{i}", marks)
    waiting: list[str] = []  # ids of calls whose results must come next
    if not body["messages"] or body["messages"][0]["role"] == "assistant":
        raise _bad("messages: first message must use the user role")
    for i, message in enumerate(body["messages"]):
        waiting = _check_message(message, f"messages.{i}", marks, waiting)
    if waiting:
        raise _bad(f"messages: `tool_use` ids were found without `tool_result` blocks: {', '.join(waiting)}")
    _check_tools(body, marks)
    if len(marks) > 4:
        raise _bad(f"A maximum of 4 blocks with cache_control may be provided. Found {len(marks)}.")
    _check_thinking(body, {"summarized", "omitted", *known & {"updates"}})
    _check_output(body.get("output_config"))


def _check_message(message: dict[str, Any], where: str, marks: list[str], waiting: list[str]) -> list[str]:
    _only(message, {"role", "content"}, where)
    role, content = message["role"], message["content"]
    if role not in _IN_ROLE:
        raise _bad(f"{where}.role: Input should be 'user', 'assistant' or 'system'")
    if isinstance(content, str):
        if not content:
            raise _bad(f"{where}: text content blocks must be non-empty")
        content = []
    results = [block.get("tool_use_id") for block in content if block.get("type") == "tool_result"]
    if sorted(results) != sorted(waiting):
        raise _bad(f"{where}: `tool_result` blocks {results} do not answer the `tool_use` blocks {waiting} before")
    if results and [block["type"] for block in content[: len(results)]] != ["tool_result"] * len(results):
        raise _bad(f"{where}: tool_result blocks must come first")
    for i, block in enumerate(content):
        _check_block(block, role, f"{where}.content.{i}", marks)
    return [block["id"] for block in content if block["type"] == "tool_use"]


def _check_block(block: dict[str, Any], role: str, where: str, marks: list[str]) -> None:
    kind = block.get("type")
    if kind not in _IN_ROLE[role]:
        raise _bad(f"{where}: a block of type {kind} cannot be in a turn of {role}")
    _only(block, _BLOCKS[kind], where)
    if (mark := block.get("cache_control")) is not None:
        _check_mark(mark, where)
        marks.append(where)
    if kind == "text" and not block["text"].strip():
        raise _bad(f"{where}: text content blocks must contain non-whitespace text")
    if kind in {"image", "document"}:
        _check_source(block["source"], kind, where)
    if kind == "thinking" and block["signature"] != SEALED:
        raise _bad(f"{where}: Invalid `signature` in `thinking` block")
    if kind == "redacted_thinking" and block["data"] != REDACTED:
        raise _bad(f"{where}: Invalid `data` in `redacted_thinking` block")
    if kind == "tool_use" and not isinstance(block["input"], dict):
        raise _bad(f"{where}.input: Input should be a valid dictionary")
    if kind == "tool_result" and isinstance(block.get("content"), list):
        for i, inner in enumerate(block["content"]):
            if inner.get("type") not in {"text", "image", "document"}:
                raise _bad(f"{where}.content.{i}: type")
            _check_block(inner, "user", f"{where}.content.{i}", marks)


def _check_source(source: dict[str, Any], kind: str, where: str) -> None:
    if source.get("type") not in _SOURCES or (kind == "image" and source["type"] == "text"):
        raise _bad(f"{where}.source.type")
    _only(source, _SOURCES[source["type"]], f"{where}.source")
    types = {"image": {"image/jpeg", "image/png", "image/gif", "image/webp"}, "document": {"application/pdf"}}
    if source["type"] == "base64":
        if source["media_type"] not in types[kind]:
            raise _bad(f"{where}.source.media_type: {source['media_type']}")
        base64.b64decode(source["data"], validate=True)
    if source["type"] == "text" and source["media_type"] != "text/plain":
        raise _bad(f"{where}.source.media_type")


def _check_mark(mark: dict[str, Any], where: str) -> None:
    if mark not in ({"type": "ephemeral"}, {"type": "ephemeral", "ttl": "5m"}, {"type": "ephemeral", "ttl": "1h"}):
        raise _bad(f"{where}.cache_control: {mark}")


def _check_tools(body: dict[str, Any], marks: list[str]) -> None:
    names = []
    for i, tool in enumerate(body.get("tools", ())):
        _only(tool, _TOOL, f"tools.{i}")
        if tool["input_schema"].get("type") != "object":
            raise _bad(f"tools.{i}.input_schema.type: Field required")
        if "cache_control" in tool:
            _check_mark(tool["cache_control"], f"tools.{i}")
            marks.append(f"tools.{i}")
        names.append(tool["name"])
    choice = body.get("tool_choice")
    if choice is None:
        return
    allowed = {
        "auto": {"type", "disable_parallel_tool_use"},
        "any": {"type", "disable_parallel_tool_use"},
        "tool": {"type", "name", "disable_parallel_tool_use"},
        "none": {"type"},
    }
    _only(choice, allowed[choice["type"]], "tool_choice")
    if not names or (choice["type"] == "tool" and choice["name"] not in names):
        raise _bad("tool_choice: no such tool")


def _check_thinking(body: dict[str, Any], displays: set[str]) -> None:
    thinking = body.get("thinking")
    if thinking is None:
        return
    allowed = {
        "enabled": {"type", "budget_tokens", "display"},
        "adaptive": {"type", "display"},
        "disabled": {"type"},
        "between_tools": {"type"},
    }
    _only(thinking, allowed[thinking["type"]], "thinking")
    if thinking.get("display", "omitted") not in displays:
        raise _bad("thinking.display")
    forced = body.get("tool_choice", {}).get("type") in {"any", "tool"}
    if forced and thinking["type"] in {"enabled", "adaptive"}:
        raise _bad("Thinking may not be enabled when tool_choice forces tool use.")
    if thinking["type"] == "enabled":
        if thinking["budget_tokens"] < 1024:
            raise _bad("thinking.enabled.budget_tokens: Input should be greater than or equal to 1024")
        if "max_tokens" in body and thinking["budget_tokens"] >= body["max_tokens"]:
            raise _bad("`max_tokens` must be greater than `thinking.budget_tokens`")


def _check_output(config: dict[str, Any] | None) -> None:
    if config is None:
        return
    _only(config, {"effort", "format"}, "output_config")
    if config.get("effort", "low") not in {"low", "medium", "high", "xhigh", "max"}:
        raise _bad(f"output_config.effort: {config['effort']}")
    if "format" in config:
        _only(config["format"], {"type", "schema"}, "output_config.format")
        if config["format"]["type"] != "json_schema":
            raise _bad("output_config.format.type")


def _check_limits(body: dict[str, Any]) -> None:
    if not isinstance(body.get("max_tokens"), int):
        raise _bad("max_tokens: Field required")
    if not 0 <= body.get("temperature", 1) <= 1:
        raise _bad("temperature: range: 0..1")
    if body.get("service_tier", "auto") not in {"auto", "standard_only"}:
        raise _bad("service_tier")
    if "metadata" in body:
        _only(body["metadata"], {"user_id"}, "metadata")
    last = body["messages"][-1]
    if last["role"] == "assistant":
        content = last["content"]
        text = content if isinstance(content, str) else content[-1].get("text", "")
        if text != text.rstrip():
            raise _bad("messages: final assistant content cannot end with trailing whitespace")


def _only(value: dict[str, Any], known: set[str], where: str) -> None:
    for name in value:
        if name not in known:
            raise _bad(f"{where}{'.' if where else ''}{name}: Extra inputs are not permitted")


def _words(body: dict[str, Any]) -> int:
    return len(json.dumps([body.get("system", ""), body["messages"], body.get("tools", [])]).split())


# --- what it says ------------------------------------------------------------------------------------------------


def _whole(value: Any) -> Told:
    return Told(200, json.dumps(value).encode(), {"Content-Type": "application/json", "request-id": "req_01"})


def _message(body: dict[str, Any], content: list[dict[str, Any]], stop: str | None, **more: Any) -> dict[str, Any]:
    return {
        "id": "msg_013Zva2CMHLNnXjNJJKqJ2EF",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": content,
        "stop_reason": stop,
        "stop_sequence": None,
        "stop_details": None,
        "usage": {**USAGE, "service_tier": "standard"},
        **more,
    }


def said(body: dict[str, Any], content: list[dict[str, Any]], stop: str = "end_turn", **more: Any) -> Told:
    """A message, streamed if that was asked for."""
    message = _message(body, content, stop, **more)
    if not body.get("stream"):
        return _whole(message)
    return Told(200, _events(message), {"Content-Type": "text/event-stream; charset=utf-8"})


def event(name: str, **data: Any) -> bytes:
    """One event of a stream."""
    return f"event: {name}\ndata: {json.dumps({'type': name, **data}, ensure_ascii=False)}\n\n".encode()


def _events(message: dict[str, Any]) -> list[bytes]:
    usage = message["usage"]
    begin = {**message, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    begin["usage"].pop("output_tokens_details", None)
    out = [event("message_start", message=begin), event("ping")]
    for index, block in enumerate(message["content"]):
        out += _block_events(index, block)
    ending = {name: message[name] for name in ("stop_reason", "stop_sequence", "stop_details") if name in message}
    told = {name: usage[name] for name in ("output_tokens", "output_tokens_details") if name in usage}
    return [*out, event("message_delta", delta=ending, usage=told), event("message_stop")]


def _block_events(index: int, block: dict[str, Any]) -> Iterator[bytes]:
    kind = block["type"]
    empty = {"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}, "tool_use": {"input": {}}}
    yield event("content_block_start", index=index, content_block={**block, **empty.get(kind, {})})
    for delta in _deltas(block):
        yield event("content_block_delta", index=index, delta=delta)
    yield event("content_block_stop", index=index)


def _deltas(block: dict[str, Any]) -> Iterator[dict[str, Any]]:
    match block["type"]:
        case "text":
            yield from ({"type": "text_delta", "text": piece} for piece in _cut(block["text"]))
        case "thinking":
            yield from ({"type": "thinking_delta", "thinking": piece} for piece in _cut(block["thinking"]))
            yield {"type": "signature_delta", "signature": block["signature"]}
        case "tool_use" if block["input"]:
            given = block["input"]  # an object, or JSON text
            pieces = ["", *_cut(given if isinstance(given, str) else json.dumps(given))]
            yield from ({"type": "input_json_delta", "partial_json": piece} for piece in pieces)


def _cut(text: str) -> Sequence[str]:
    return [text[i : i + 5] for i in range(0, len(text), 5)]


# --- scripts -----------------------------------------------------------------------------------------------------

GREETING = "Grüße, world"


def text(body: dict[str, Any], argument: str) -> Told:
    """A greeting."""
    del argument
    return said(body, [{"type": "text", "text": GREETING}])


def thinks(body: dict[str, Any], argument: str) -> Told:
    """A thought with its seal, one that is hidden, and an answer; two tokens of seven were thought."""
    del argument
    usage = {**USAGE, "output_tokens_details": {"thinking_tokens": 2}, "service_tier": "priority"}
    content = [
        {"type": "thinking", "thinking": "Let me see.", "signature": SEALED},
        {"type": "redacted_thinking", "data": REDACTED},
        {"type": "text", "text": "Four."},
    ]
    return said(body, content, usage=usage)


def calls(body: dict[str, Any], argument: str) -> Told:
    """A word, a call with arguments, and one without."""
    del argument
    content = [
        {"type": "text", "text": "Let me look."},
        {"type": "tool_use", "id": "toolu_01A09q90qw90lq917835lq9", "name": "weather", "input": {"city": "Paris"}},
        {"type": "tool_use", "id": "toolu_01B09q90qw90lq917835lq9", "name": "now", "input": {}},
    ]
    return said(body, content, "tool_use")


def json_answer(body: dict[str, Any], argument: str) -> Told:
    """What the asked schema wants of a sum."""
    del argument
    if body["output_config"]["format"]["schema"]["type"] != "object":
        raise _bad("output_config.format.schema")
    return said(body, [{"type": "text", "text": '{"sum": 4}'}])


def ends(body: dict[str, Any], argument: str) -> Told:
    """A word, and that reason to end."""
    more: dict[str, Any] = {}
    if argument == "stop_sequence":
        more["stop_sequence"] = body["stop_sequences"][0]
    if argument == "refusal":
        more["stop_details"] = {"type": "refusal", "category": "bio", "explanation": None}
    return said(body, [{"type": "text", "text": "one"}], argument, **more)


def refuses(body: dict[str, Any], argument: str) -> Told:
    """An error of that type."""
    del body
    statuses = {
        "authentication_error": 401, "billing_error": 402, "permission_error": 403, "not_found_error": 404,
        "request_too_large": 413, "rate_limit_error": 429, "api_error": 500, "timeout_error": 504,
        "overloaded_error": 529, "invalid_request_error": 400,
    }  # fmt: skip
    messages = {
        "long": "prompt is too long: 208310 tokens > 200000 maximum",
        "poor": "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade.",
    }
    kind = argument if argument in statuses else "invalid_request_error"
    headers = {"retry-after": "13"} if kind in {"rate_limit_error", "overloaded_error"} else {}
    raise Refusal(statuses[kind], kind, messages.get(argument, f"That was {kind}."), **headers)


def breaks(body: dict[str, Any], argument: str) -> Told:
    """A word, and then: an `error`, no end (`cut`, `quiet`), nonsense (`garbage`, `endless`), or events not known yet
    (`news`)."""
    message = _message(body, [{"type": "text", "text": "one"}], "end_turn")
    events = _events(message)
    overloaded = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
    tails = {
        "error": [overloaded],
        "first": [overloaded],
        "cut": [],
        "quiet": [],
        "garbage": [b"data: {nonsense\n\n"],
        "endless": [b"data: ", *[b"x" * (1 << 20)] * 5],
        "news": [event("new_event", x=1), event("content_block_start", index=7, content_block={"type": "new_block"}),
                 event("content_block_delta", index=7, delta={"type": "new_delta", "y": [1]}),
                 event("content_block_stop", index=7), *events[-3:]],
    }  # fmt: skip
    head = [] if argument == "first" else events[:4]
    kind = {"Content-Type": "text/event-stream"}
    return Told(200, [*head, *tails[argument]], kind, cut=argument == "cut")


def whole_error(body: dict[str, Any], argument: str) -> Told:
    """A success code around an error; with `html`, around a page; with `short`, around half a message."""
    if argument == "html":
        return Told(200, b"<html>", {"Content-Type": "text/html"})
    if argument == "short":
        return _whole(_message(body, [{"type": "text", "text": "one"}], None))
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    return Told(200, json.dumps(error).encode(), {"Content-Type": "application/json"})


def counts(body: dict[str, Any], argument: str) -> Told:
    """A greeting, and that usage."""
    return said(body, [{"type": "text", "text": GREETING}], usage=json.loads(argument))


def says(body: dict[str, Any], argument: str) -> Told:
    """What it is told to; a refusal as a text that ends so."""
    one = SAYINGS[argument]
    if one.fault and not one.late:
        raise _bad(one.fault)
    content = [{"type": "thinking", "thinking": one.thought, "signature": SEALED}] if one.thought else []
    content += [{"type": "text", "text": text} for text in (one.text, one.refusal) if text]
    content += [
        {
            "type": "tool_use", "id": call.id, "name": call.name,
            "input": call.arguments if body.get("stream") else json.loads(call.arguments),
        }
        for call in one.calls
    ]  # fmt: skip
    if one.late:
        error = event("error", error={"type": "invalid_request_error", "message": one.fault})
        events = _events(_message(body, content, "end_turn"))
        return Told(200, [*events[:-2], error], {"Content-Type": "text/event-stream"})
    return said(body, content, "tool_use" if one.calls else "refusal" if one.refusal else "end_turn")


SCRIPTS: dict[str, Callable[[dict[str, Any], str], Told]] = {
    "text": text,
    "says": says,
    "thinks": thinks,
    "calls": calls,
    "json": json_answer,
    "ends": ends,
    "refuses": refuses,
    "breaks": breaks,
    "wraps": whole_error,
    "counts": counts,
}
