"""Bedrock's runtime on loopback: it checks signatures with botocore's own signer, and bodies against the service's
published model (`botocore/data/bedrock-runtime/*/service-2.json`, from Smithy), and writes AWS's event stream.

The last text of a request says what comes back; see `SCRIPTS`. It shares nothing with the product.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

import botocore.session
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.providers.servers.http import Asked, Told, serving
from tests.providers.servers.sayings import Saying, cut, saying_of
from tests.providers.servers.sensible import Question, reply

REGION = "eu-central-1"
ACCESS, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"  # AWS's own published example
BEARER = "bedrock-api-key-for-tests"

_MODEL = botocore.session.Session().get_service_model("bedrock-runtime")
_OPERATIONS = {"converse": "Converse", "converse-stream": "ConverseStream", "count-tokens": "CountTokens"}


@dataclass
class Bedrock:
    """A running server. `keys` are the access keys it knows: secret and session token, or None once expired."""

    url: str = ""
    keys: dict[str, tuple[str, str] | None] = field(default_factory=lambda: {ACCESS: (SECRET, "")})
    seen: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)  # operation, model, body
    users: list[str] = field(default_factory=list)  # access keys, or "bearer"
    paths: list[str] = field(default_factory=list)
    sensible: bool = False  # it answers what is asked

    @property
    def last(self) -> dict[str, Any]:
        """The body of the last request."""
        return self.seen[-1][2]


class Refusal(Exception):
    """An exception of the service."""

    def __init__(self, status: int, type: str, message: str) -> None:
        super().__init__(message)
        self.status, self.type, self.message = status, type, message


@contextmanager
def running_bedrock() -> Iterator[Bedrock]:
    """Start one."""
    bedrock = Bedrock()
    with serving(lambda asked: _answer(bedrock, asked)) as url:
        bedrock.url = url
        yield bedrock


def _answer(bedrock: Bedrock, asked: Asked) -> Told:
    try:
        bedrock.paths.append(asked.path)
        bedrock.users.append(_authenticated(bedrock, asked))
        _, kind, model, action = asked.path.split("/")
        if kind != "model" or action not in _OPERATIONS:
            raise Refusal(404, "UnknownOperationException", "no such operation")
        operation = _OPERATIONS[action]
        body = json.loads(asked.body)
        _check(body, _MODEL.operation_model(operation).input_shape, "body", top=True)
        bedrock.seen.append((operation, unquote(model), body))
        if operation == "CountTokens":
            return _json({"inputTokens": len(json.dumps(body["input"])) // 4})
        _check_turns(body)
        if (one := saying_of(unquote(model))) is not None:
            events: list[Event] | Told = _says(one)
        else:
            events = sensible(body) if bedrock.sensible else SCRIPTS[_wish(body)](body)
        if isinstance(events, Told):
            return events
        return _json(_whole(events)) if operation == "Converse" else _stream(events)
    except Refusal as refusal:
        return refused(refusal.status, refusal.type, refusal.message)


def refused(status: int, type: str, message: str, **headers: str) -> Told:
    """As the service refuses."""
    named = {"x-amzn-ErrorType": f"{type}:http://internal.amazon.com/coral/com.amazon.bedrock/", **headers}
    return Told(status, json.dumps({"message": message}).encode(), {"Content-Type": "application/json", **named})


def _json(body: Any) -> Told:
    return Told(200, json.dumps(body).encode(), {"Content-Type": "application/json"})


# --- who asks ----------------------------------------------------------------------------------------------------


def _authenticated(bedrock: Bedrock, asked: Asked) -> str:
    """The access key that signed the request; raises `Refusal` as AWS does."""
    given = asked.headers.get("authorization", "")
    if given.startswith("Bearer "):
        if given != f"Bearer {BEARER}":
            raise Refusal(403, "AccessDeniedException", "Authentication failed: the API key is not valid.")
        return "bearer"
    if not given.startswith("AWS4-HMAC-SHA256 "):
        raise Refusal(403, "MissingAuthenticationTokenException", "Missing Authentication Token")
    parts = dict(part.strip().split("=", 1) for part in given.removeprefix("AWS4-HMAC-SHA256 ").split(","))
    access, day, region, service, end = parts["Credential"].split("/")
    if access not in bedrock.keys:
        raise Refusal(403, "UnrecognizedClientException", "The security token included in the request is invalid.")
    known = bedrock.keys[access]
    if known is None:
        raise Refusal(403, "ExpiredTokenException", "The security token included in the request is expired")
    stamp = asked.headers["x-amz-date"]
    moment = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    if (region, service, end) != (REGION, "bedrock", "aws4_request") or not stamp.startswith(day):
        raise Refusal(403, "InvalidSignatureException", "Credential should be scoped to the right region and service.")
    if abs(moment.timestamp() - time.time()) > 300:
        raise Refusal(403, "InvalidSignatureException", "Signature expired")
    secret, token = known
    signed = parts["SignedHeaders"].split(";")
    least = {"host", "x-amz-date", "content-type"} | ({"x-amz-security-token"} if token else set())
    if not least <= set(signed) or asked.headers.get("x-amz-security-token", "") != token:
        raise Refusal(403, "InvalidSignatureException", "a header is not signed")
    url = f"http://{asked.headers['host']}{asked.path}"
    headers = {name: asked.headers[name] for name in signed}
    request = AWSRequest(method=asked.method, url=url, data=asked.body, headers=headers)
    request.context["timestamp"] = stamp
    signer = SigV4Auth(Credentials(access, secret, token or None), "bedrock", REGION)
    canonical = signer.canonical_request(request)
    if signer.signature(signer.string_to_sign(request, canonical), request) != parts["Signature"]:
        raise Refusal(403, "InvalidSignatureException", "The request signature we calculated does not match.")
    return str(access)


# --- what is asked -----------------------------------------------------------------------------------------------


def _check(value: Any, shape: Any, where: str, *, top: bool = False) -> None:
    """Hold JSON against a shape of the service's model; unknown members are refused."""

    def wrong(what: str) -> Refusal:
        return Refusal(400, "ValidationException", f"{where}: {what}")

    kind = shape.type_name
    if kind == "structure":
        if shape.is_document_type:
            return
        if not isinstance(value, dict):
            raise wrong("not an object")
        members = {m.serialization.get("name", n): m for n, m in shape.members.items() if not _in_path(m)}
        if extra := set(value) - set(members):
            raise wrong(f"unknown members {sorted(extra)}")
        required = {name for name in shape.required_members if not _in_path(shape.members[name])}
        if missing := required - set(value):
            raise wrong(f"missing members {sorted(missing)}")
        if shape.is_tagged_union and len(value) != 1:
            raise wrong("a union has exactly one member")
        for name, member in value.items():
            _check(member, members[name], f"{where}.{name}")
    elif kind == "list":
        least, most = shape.metadata.get("min", 0), shape.metadata.get("max", 1 << 30)
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise wrong("not a list of that length")
        for i, member in enumerate(value):
            _check(member, shape.member, f"{where}[{i}]")
    elif kind == "map":
        if not isinstance(value, dict):
            raise wrong("not a map")
        for name, member in value.items():
            _check(name, shape.key, f"{where} key")
            _check(member, shape.value, f"{where}.{name}")
    else:
        _check_scalar(value, shape, wrong)


def _check_scalar(value: Any, shape: Any, wrong: Callable[[str], Refusal]) -> None:
    kind = shape.type_name
    least, most = shape.metadata.get("min"), shape.metadata.get("max")
    if kind == "string":
        if not isinstance(value, str) or (shape.enum and value not in shape.enum):
            raise wrong(f"not one of {shape.enum or 'texts'}")
        size: Any = len(value)
    elif kind == "blob":
        try:
            size = len(base64.b64decode(value, validate=True))
        except (TypeError, ValueError, binascii.Error):
            raise wrong("not base64") from None
    elif kind == "boolean":
        if not isinstance(value, bool):
            raise wrong("not a boolean")
        return
    else:
        if isinstance(value, bool) or not isinstance(value, int if kind in {"integer", "long"} else int | float):
            raise wrong(f"not of type {kind}")
        size = value
    if (least is not None and size < least) or (most is not None and size > most):
        raise wrong(f"not between {least} and {most}")


def _in_path(member: Any) -> bool:
    return member.serialization.get("location") == "uri"


def _check_turns(body: dict[str, Any]) -> None:
    """Rules that stand in the guide, not in the model: turns alternate, no text is blank, each call has its result in
    the next turn, tools are shown where there are calls."""

    def wrong(what: str) -> Refusal:
        return Refusal(400, "ValidationException", what)

    turns = body["messages"]
    roles = [turn["role"] for turn in turns]
    if roles != [("user", "assistant")[i % 2] for i in range(len(roles))]:
        raise wrong("A conversation must alternate between user and assistant roles and start with a user message.")
    open_calls: set[str] = set()
    for turn in turns:
        if not turn["content"]:
            raise wrong("The content field in the Message object is empty.")
        if any(block.get("text") == "" for block in turn["content"]):
            raise wrong("The text field in the ContentBlock object is blank.")
        results = {b["toolResult"]["toolUseId"] for b in turn["content"] if "toolResult" in b}
        if results != open_calls:
            raise wrong(f"Expected toolResult blocks for {sorted(open_calls)}, found {sorted(results)}.")
        open_calls = {b["toolUse"]["toolUseId"] for b in turn["content"] if "toolUse" in b}
        names = [b["document"]["name"] for b in turn["content"] if "document" in b]
        if len(set(names)) != len(names):
            raise wrong("Document names must be unique.")
        if (results or open_calls) and "toolConfig" not in body:
            raise wrong("The toolConfig field must be defined when using toolUse and toolResult content blocks.")


def _wish(body: dict[str, Any]) -> str:
    """The first word of the last text; "words" where that is no script's name."""
    texts = [block["text"] for turn in body["messages"] for block in turn["content"] if "text" in block]
    word = texts[-1].split(" ")[0] if texts else ""
    return word if word in SCRIPTS else "words"


# --- what comes back ---------------------------------------------------------------------------------------------

Event = tuple[str, dict[str, Any]]


def _text(index: int, *pieces: str) -> Iterator[Event]:
    for piece in pieces:
        yield "contentBlockDelta", {"contentBlockIndex": index, "delta": {"text": piece}, "p": "abcd"}
    yield "contentBlockStop", {"contentBlockIndex": index, "p": "ab"}


def _call(index: int, id: str, name: str, *pieces: str) -> Iterator[Event]:
    yield "contentBlockStart", {"contentBlockIndex": index, "start": {"toolUse": {"toolUseId": id, "name": name}}}
    for piece in pieces:
        yield "contentBlockDelta", {"contentBlockIndex": index, "delta": {"toolUse": {"input": piece}}}
    yield "contentBlockStop", {"contentBlockIndex": index}


def _thought(index: int, *deltas: dict[str, Any]) -> Iterator[Event]:
    for delta in deltas:
        yield "contentBlockDelta", {"contentBlockIndex": index, "delta": {"reasoningContent": delta}}
    yield "contentBlockStop", {"contentBlockIndex": index}


def _said(*blocks: Iterator[Event], stop: str = "end_turn", more: Any = None, **usage: Any) -> list[Event]:
    """A whole answer around its blocks."""
    counts: dict[str, Any] = {"inputTokens": 12, "outputTokens": 7} | usage
    counts.setdefault("totalTokens", sum(count for count in counts.values() if isinstance(count, int)))
    ending: dict[str, Any] = {"stopReason": stop}
    if more is not None:
        ending["additionalModelResponseFields"] = more
    return [
        ("messageStart", {"role": "assistant", "p": "abc"}),
        *(event for block in blocks for event in block),
        ("messageStop", ending),
        ("metadata", {"usage": counts, "metrics": {"latencyMs": 321}, "serviceTier": {"type": "default"}}),
    ]


def _frame(headers: dict[str, str], payload: bytes) -> bytes:
    """One message of an event stream."""
    head = b"".join(
        struct.pack(">B", len(name)) + name.encode() + struct.pack(">BH", 7, len(value.encode())) + value.encode()
        for name, value in headers.items()
    )
    prelude = struct.pack(">II", 16 + len(head) + len(payload), len(head))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + head + payload
    return message + struct.pack(">I", zlib.crc32(message))


def frame_of(name: str, payload: dict[str, Any]) -> bytes:
    """The message of one event or exception."""
    kind = "exception" if name.endswith("Exception") else "event"
    headers = {f":{kind}-type": name, ":content-type": "application/json", ":message-type": kind}
    return _frame(headers, json.dumps(payload).encode())


def _stream(events: list[Event]) -> Told:
    frames = [frame_of(name, payload) for name, payload in events]
    cut = b"".join(frames)
    halves = [cut[at : at + 37] for at in range(0, len(cut), 37)]  # never at a message's edge
    return Told(200, halves, {"Content-Type": "application/vnd.amazon.eventstream"})


def _whole(events: list[Event]) -> dict[str, Any]:
    """The same answer as Converse tells it."""
    blocks: dict[int, dict[str, Any]] = {}
    answer: dict[str, Any] = {}
    for name, payload in events:
        if name.endswith("Exception"):
            raise Refusal(429, name[0].upper() + name[1:], payload["message"])
        if name == "contentBlockStart":
            blocks[payload["contentBlockIndex"]] = {"toolUse": payload["start"]["toolUse"] | {"input": ""}}
        elif name == "contentBlockDelta":
            _grow(blocks.setdefault(payload["contentBlockIndex"], {}), payload["delta"])
        elif name in {"messageStop", "metadata"}:
            answer |= payload
    for block in blocks.values():
        if "toolUse" in block:
            block["toolUse"]["input"] = json.loads(block["toolUse"]["input"] or "{}")
    answer["output"] = {"message": {"role": "assistant", "content": [blocks[i] for i in sorted(blocks)]}}
    return answer


def _grow(block: dict[str, Any], delta: dict[str, Any]) -> None:
    if "text" in delta:
        block["text"] = block.get("text", "") + delta["text"]
    elif "toolUse" in delta:
        block["toolUse"]["input"] += delta["toolUse"]["input"]
    elif "redactedContent" in delta["reasoningContent"]:
        block["reasoningContent"] = delta["reasoningContent"]
    else:
        text = block.setdefault("reasoningContent", {"reasoningText": {"text": ""}})["reasoningText"]
        for name, piece in delta["reasoningContent"].items():
            text[name] = text.get(name, "") + piece


def _says(one: Saying) -> list[Event]:
    """What it is told to."""
    if one.fault and not one.late:
        raise Refusal(400, "ValidationException", one.fault)
    blocks = [lambda at: _thought(at, *({"text": piece} for piece in cut(one.thought)))] if one.thought else []
    blocks += [lambda at, text=text: _text(at, *cut(text)) for text in (one.text, one.refusal) if text]
    blocks += [lambda at, call=call: _call(at, call.id, call.name, *cut(call.arguments)) for call in one.calls]
    events = _said(*(block(at) for at, block in enumerate(blocks)), stop="tool_use" if one.calls else "end_turn")
    return [*events[:-2], ("validationException", {"message": one.fault})] if one.late else events


def sensible(body: dict[str, Any]) -> list[Event]:
    """What the conversation asks for."""
    blocks = [turn["content"] for turn in body["messages"] if turn["role"] == "user"][-1]
    form = body.get("outputConfig", {}).get("textFormat")
    results = [block["toolResult"]["content"] for block in blocks if "toolResult" in block]
    made = reply(
        Question(
            " ".join(block["text"] for block in blocks if "text" in block),
            [tool["toolSpec"]["name"] for tool in body.get("toolConfig", {}).get("tools", ()) if "toolSpec" in tool],
            ["".join(one.get("text", "") for one in result) for result in results],
            json.loads(form["structure"]["jsonSchema"]["schema"]) if form else None,
            any("image" in block for block in blocks),
            body.get("inferenceConfig", {}).get("stopSequences", ()),
        ),
        len(json.dumps(body["messages"])),
    )
    counts: dict[str, Any] = {"inputTokens": made.prompt_tokens, "outputTokens": made.completion_tokens}
    calls = [_call(i, f"tooluse_{i}", name, json.dumps(given)) for i, (name, given) in enumerate(made.calls)]
    if calls:
        return _said(*calls, stop="tool_use", **counts)
    return _said(_text(0, *(made.text[i : i + 5] for i in range(0, len(made.text), 5))), **counts)


Script = Callable[[dict[str, Any]], "list[Event] | Told"]

SEALED = base64.b64encode(b"sealed thought").decode()
WEATHER = ('{"city": "Zü', 'rich", "days": 1', "0}")


def _raw(*frames: bytes, cut: bool = False) -> Told:
    return Told(200, list(frames), {"Content-Type": "application/vnd.amazon.eventstream"}, cut=cut)


_ENDLESS = struct.pack(">II", 1 << 30, 0)  # how a message of a gigabyte would begin


def _throttled_inside(body: dict[str, Any]) -> list[Event]:
    return [("throttlingException", {"message": "Too many requests, please wait before trying again."})]


def _failed_inside(body: dict[str, Any]) -> list[Event]:
    begun = _said(_text(0, "half an ans"))[:2]
    failure = {"message": "secret stack", "originalStatusCode": 500, "originalMessage": "internal"}
    return [*begun, ("modelStreamErrorException", failure)]


def _wrong_checksum(body: dict[str, Any]) -> Told:
    frame = bytearray(frame_of("messageStart", {"role": "assistant"}))
    frame[-6] ^= 1
    return _raw(bytes(frame))


SCRIPTS: dict[str, Script] = {
    "words": lambda body: _said(_text(0, "Grüße", ", ", "world")),
    "calls": lambda body: _said(
        _text(0, "Let me look."),
        _call(1, "tooluse_1", "weather", "", *WEATHER),
        _call(2, "tooluse_2", "now"),
        stop="tool_use",
    ),
    "thinks": lambda body: _said(
        _thought(0, {"text": "First "}, {"text": "this."}, {"signature": "c2lnbmVk"}),
        _thought(1, {"redactedContent": SEALED}),
        _text(2, "Done."),
    ),
    "cached-an-hour": lambda body: _said(
        _text(0, "ok"),
        cacheWriteInputTokens=40,
        cacheDetails=[{"ttl": "1h", "inputTokens": 30}, {"ttl": "5m", "inputTokens": 10}],
    ),
    "cached": lambda body: _said(_text(0, "ok"), cacheReadInputTokens=100, cacheWriteInputTokens=40),
    "json": lambda body: _said(_text(0, '{"a":', " 1}")),
    "long": lambda body: _said(_text(0, "and so on"), stop="max_tokens"),
    "full": lambda body: _said(_text(0, "and so on"), stop="model_context_window_exceeded"),
    "stops": lambda body: _said(_text(0, "one, "), stop="stop_sequence", more={"stop_sequence": "two"}),
    "guarded": lambda body: _said(_text(0, "Sorry, no."), stop="guardrail_intervened"),
    "filtered": lambda body: _said(_text(0, "Sor"), stop="content_filtered"),
    "malformed": lambda body: _said(_text(0, "{{"), stop="malformed_tool_use"),
    "contradicts": lambda body: _said(_text(0, "ok"), outputTokens=0, totalTokens=12),
    "throttled": lambda body: refused(429, "ThrottlingException", "Too many tokens.", **{"Retry-After": "7"}),
    "too-long": lambda body: refused(400, "ValidationException", "Input is too long for requested model."),
    "denied": lambda body: refused(403, "AccessDeniedException", "You don't have access to the model."),
    "not-ready": lambda body: refused(429, "ModelNotReadyException", "The model is not ready."),
    "timeout": lambda body: refused(408, "ModelTimeoutException", "The model took too long."),
    "unavailable": lambda body: refused(503, "ServiceUnavailableException", "Try your request again."),
    "model-error": lambda body: refused(424, "ModelErrorException", "The model failed."),
    "throttled-inside": _throttled_inside,
    "failed-inside": _failed_inside,
    "error-frame": lambda body: _raw(
        _frame({":message-type": "error", ":error-code": "InternalFailure", ":error-message": "oh"}, b"")
    ),
    "checksum": _wrong_checksum,
    "endless": lambda body: _raw(_ENDLESS, struct.pack(">I", zlib.crc32(_ENDLESS)), b"x" * 99),
    "cut": lambda body: _raw(*(frame_of(*event) for event in _said(_text(0, "half"))[:2]), cut=True),
    "no-usage": lambda body: _raw(*(frame_of(*event) for event in _said(_text(0, "almost", " all"))[:-1])),
    "html": lambda body: Told(200, b"<html>", {"Content-Type": "text/html"}),
    "garbage": lambda body: Told(200, b"\x00garbage\xff" * 40, {"Content-Type": "application/vnd.amazon.eventstream"}),
}
