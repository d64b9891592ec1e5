"""OpenAI's API on loopback: requests are held against OpenAI's published schemas, answers are those of its reference.
It is Azure's too: the same behind other addresses and another key, with Entra's token endpoint beside it.

The `model` (on Azure, the deployment) says what comes back; see `SCRIPTS`. It shares nothing with the product.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl

from tests.providers.servers.http import Asked, Told, serving
from tests.providers.servers.openai_schemas import complaints_about
from tests.providers.servers.sayings import SAYINGS
from tests.providers.servers.sensible import Question, reply

KEY, AZURE_KEY, CLIENT, CLIENT_SECRET = "sk-proj-test-01234567", "0123456789abcdef0123456789abcdef", "client-1", "s3~x"
VERSION, TENANT, SCOPE = "2024-10-21", "tenant-1", "https://cognitiveservices.azure.com/.default"
FIXTURES = Path(__file__).parent.parent / "fixtures"
GREETING = "Grüße, world"
USAGE = {
    "prompt_tokens": 30,
    "completion_tokens": 7,
    "total_tokens": 37,
    "prompt_tokens_details": {"cached_tokens": 20, "cache_write_tokens": 3, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 2, "audio_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
    },
}  # fmt: skip
_SCHEMAS = {
    "/chat/completions": "CreateChatCompletionRequest",
    "/completions": "CreateCompletionRequest",
    "/embeddings": "CreateEmbeddingRequest",
    "/responses": "CreateResponse",
}
_DEPLOYMENT = re.compile(r"/openai/deployments/([^/]+)(/.*)")


@dataclass
class OpenAI:
    """A running server. `more` are properties of chat completions that it knows beyond OpenAI's, as some servers do;
    `tokens` are those it has issued, each with its life in seconds."""

    url: str = ""
    seen: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)
    tokens: list[str] = field(default_factory=list)
    life: int = 3599
    revoked: set[str] = field(default_factory=set)
    sensible: bool = False  # whatever the model is called, it answers what is asked

    @property
    def last(self) -> dict[str, Any]:
        """The body of the last request."""
        return self.seen[-1][1]


class Refusal(Exception):
    """An error of the API; `body` replaces its error object."""

    def __init__(self, status: int, message: str, *, body: Any = None, headers: Any = None, **more: Any) -> None:
        super().__init__(message)
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": None, **more}
        self.status, self.body, self.headers = status, body or {"error": error}, headers or {}


@contextmanager
def running_openai() -> Iterator[OpenAI]:
    """Start one."""
    made = OpenAI()
    with serving(lambda asked: _answer(made, asked)) as url:
        made.url = url
        yield made


def _answer(server: OpenAI, asked: Asked) -> Told:
    try:
        path, _, query = asked.path.partition("?")
        if path == f"/{TENANT}/oauth2/v2.0/token":
            return _token(server, asked)
        endpoint, deployment = _placed(server, path, dict(parse_qsl(query)), asked.headers)
        body = json.loads(asked.body)
        known = server.more if endpoint == "/chat/completions" else None
        if faults := complaints_about(_SCHEMAS[endpoint], body, known):
            raise Refusal(400, f"Unknown or invalid: {faults}"[:900])
        server.seen.append((path, body))
        name, _, argument = (deployment or body["model"]).partition(":")
        if endpoint == "/responses":
            from tests.providers.servers.openai_responses import SCRIPTS as RESPONSES

            return RESPONSES[name](body, argument)
        if endpoint == "/embeddings":
            return _embeddings(body)
        if server.sensible:
            return sensible(body)
        if name not in SCRIPTS:
            raise Refusal(404, f"The model `{name}` does not exist", code="model_not_found")
        return SCRIPTS[name](body, argument)
    except Refusal as refusal:
        kind = {"Content-Type": "application/json", **refusal.headers}
        return Told(refusal.status, json.dumps(refusal.body).encode(), kind)


# --- who asks, and where -----------------------------------------------------------------------------------------


def _placed(server: OpenAI, path: str, query: dict[str, str], headers: dict[str, str]) -> tuple[str, str]:
    """The endpoint, and the deployment where there is one."""
    found = _DEPLOYMENT.fullmatch(path)
    if found or path.startswith("/openai/v1/"):
        if headers.get("api-key") != AZURE_KEY:
            token = headers.get("authorization", "").removeprefix("Bearer ")
            if token not in server.tokens or token in server.revoked:
                raise Refusal(401, "", body={"error": {"code": "401", "message": "Access denied."}})
        if not found:
            return path.removeprefix("/openai/v1"), ""
        if query.get("api-version") != VERSION:
            raise Refusal(404, "", body={"error": {"code": "404", "message": "Resource not found"}})
        return found[2], found[1].replace("%3A", ":")
    if headers.get("authorization") != f"Bearer {KEY}":
        shown = headers.get("authorization", "")
        raise Refusal(401, f"Incorrect API key provided: {shown}.", code="invalid_api_key")
    if not path.startswith("/v1/") or path.removeprefix("/v1") not in _SCHEMAS:
        raise Refusal(404, f"Invalid URL (POST {path})")
    return path.removeprefix("/v1"), ""


def _token(server: OpenAI, asked: Asked) -> Told:
    """Entra's answer to client credentials."""
    form = {name: values[0] for name, values in parse_qs(asked.body.decode()).items()}
    wanted = {"grant_type": "client_credentials", "client_id": CLIENT, "client_secret": CLIENT_SECRET, "scope": SCOPE}
    if form != wanted:
        error = {"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret provided."}
        raise Refusal(401, "", body=error)
    server.tokens.append(f"eyJ0eXAi.token.{len(server.tokens)}")
    told = {"token_type": "Bearer", "expires_in": server.life, "ext_expires_in": server.life}
    return _whole(told | {"access_token": server.tokens[-1]})


# --- answers -----------------------------------------------------------------------------------------------------


def _whole(value: Any, **headers: str) -> Told:
    return Told(200, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})


def _shell(body: dict[str, Any], kind: str) -> dict[str, Any]:
    shell = {"id": "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT", "object": kind, "created": 1741569952}
    return shell | {"model": body["model"], "service_tier": "default", "system_fingerprint": "fp_50cad350e4"}


def said(body: dict[str, Any], messages: list[dict[str, Any]], finish: str = "stop", **usage: Any) -> Told:
    """A completion of these messages (without their role), streamed in pieces if that was asked for."""
    counted = USAGE | usage
    if not body.get("stream"):
        choices = [
            {"index": i, "message": {"role": "assistant", "content": None, "refusal": None, **_plain(message)},
             "logprobs": message.get("logprobs"), "finish_reason": finish}
            for i, message in enumerate(messages)
        ]  # fmt: skip
        return _whole(_shell(body, "chat.completion") | {"choices": choices, "usage": counted})
    return Told(200, list(_chunks(body, messages, finish, counted)), {"Content-Type": "text/event-stream"})


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in message.items() if name != "logprobs"}


def _chunks(
    body: dict[str, Any], messages: list[dict[str, Any]], finish: str, usage: dict[str, Any]
) -> Iterator[bytes]:
    wanted = (body.get("stream_options") or {}).get("include_usage")
    for i in range(len(messages)):
        yield chunk(body, i, {"role": "assistant", "content": "", "refusal": None}, usage=wanted)
    for i, message in enumerate(messages):
        for delta, logprobs in _deltas(message):
            yield chunk(body, i, delta, logprobs=logprobs, usage=wanted)
    for i in range(len(messages)):
        yield chunk(body, i, {}, finish, usage=wanted)
    if wanted:
        yield _event(_shell(body, "chat.completion.chunk") | {"choices": [], "usage": usage})
    yield b"data: [DONE]\n\n"


def chunk(
    body: dict[str, Any], index: int, delta: Any, finish: Any = None, *, logprobs: Any = None, usage: Any = None
) -> bytes:
    """One event of a stream; `usage`: it was asked for, so every chunk but the last says null."""
    choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
    more = {"usage": None} if usage else {}
    return _event(_shell(body, "chat.completion.chunk") | {"choices": [choice]} | more)


def _event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _deltas(message: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Any]]:
    for name in ("reasoning_content", "refusal", "content"):
        logprobs = (message.get("logprobs") or {}).get("content") if name == "content" else None
        for i, piece in enumerate(_cut(message.get(name) or "")):
            told = {"content": [logprobs[i]], "refusal": None} if logprobs else None
            yield {name: piece}, told
    for i, call in enumerate(message.get("tool_calls") or ()):
        function = call["function"]
        begin = {"index": i, "id": call["id"], "type": "function", "function": {**function, "arguments": ""}}
        yield {"tool_calls": [begin]}, None
        for piece in _cut(function["arguments"]):
            yield {"tool_calls": [{"index": i, "function": {"arguments": piece}}]}, None


def _cut(text: str) -> list[str]:
    return [text[i : i + 5] for i in range(0, len(text), 5)]


def _embeddings(body: dict[str, Any]) -> Told:
    import base64
    import struct

    given = body["input"] if isinstance(body["input"], list) else [body["input"]]
    rows = [[float(i), 0.5] for i in range(len(given))]
    packed = [base64.b64encode(struct.pack("<2f", *row)).decode() for row in rows]
    shown = packed if body.get("encoding_format") == "base64" else rows
    data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(shown)]
    return _whole({"object": "list", "data": data, "model": body["model"],
                   "usage": {"prompt_tokens": 5, "total_tokens": 5}})  # fmt: skip


# --- scripts -----------------------------------------------------------------------------------------------------


def text(body: dict[str, Any], argument: str) -> Told:
    """A greeting, `n` times, with logprobs if asked; to a prompt, a text completion."""
    del argument
    if "messages" not in body:
        shell = _shell(body, "text_completion")
        choice = {"index": 0, "text": GREETING, "logprobs": None, "finish_reason": "stop"}
        if not body.get("stream"):
            return _whole(shell | {"choices": [choice], "usage": USAGE})
        last = [_event(shell | {"choices": [], "usage": USAGE})]
        return Told(200, [_event(shell | {"choices": [choice]}), *last, b"data: [DONE]\n\n"],
                    {"Content-Type": "text/event-stream"})  # fmt: skip
    message: dict[str, Any] = {"content": GREETING}
    if body.get("logprobs"):
        top = [{"token": "x", "logprob": -3.0, "bytes": [120]}] * body.get("top_logprobs", 0)
        tokens = [{"token": piece, "logprob": -0.25, "bytes": list(piece.encode()), "top_logprobs": top}
                  for piece in _cut(GREETING)]  # fmt: skip
        message["logprobs"] = {"content": tokens, "refusal": None}
    return said(body, [message] * body.get("n", 1))


def calls(body: dict[str, Any], argument: str) -> Told:
    """Two calls at once, unless one at a time was asked for."""
    del argument
    made = [
        {"id": f"call_{name}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for name, arguments in (("weather", '{"city": "Paris"}'), ("now", "{}"))
    ]
    return said(body, [{"tool_calls": made[: 1 if body.get("parallel_tool_calls") is False else 2]}], "tool_calls")


def refuses_to(body: dict[str, Any], argument: str) -> Told:
    """A refusal, as models with structured output say it."""
    del argument
    return said(body, [{"refusal": "I can't help with that."}])


def thinks(body: dict[str, Any], argument: str) -> Told:
    """Thoughts beside the answer, as many compatible servers show them."""
    del argument
    return said(body, [{"reasoning_content": "Let me see.", "content": "Four."}])


def json_answer(body: dict[str, Any], argument: str) -> Told:
    """What the asked schema wants of a sum."""
    del argument
    if body["response_format"]["json_schema"]["strict"] is not True:
        raise Refusal(400, "strict", param="response_format")
    return said(body, [{"content": '{"sum": 4}'}])


def ends(body: dict[str, Any], argument: str) -> Told:
    """A word, and that reason to end."""
    return said(body, [{"content": "one"}], argument)


def counts(body: dict[str, Any], argument: str) -> Told:
    """A greeting, and that usage."""
    return said(body, [{"content": GREETING}], **json.loads(argument))


def plays(body: dict[str, Any], argument: str) -> Told:
    """A fixture: an event stream, or an error."""
    del body
    if argument.endswith(".sse"):
        return Told(200, (FIXTURES / argument).read_bytes(), {"Content-Type": "text/event-stream"})
    raise Refusal(400, "", body=json.loads((FIXTURES / argument).read_text()))


def filtered(body: dict[str, Any], argument: str) -> Told:
    """Azure's stream: first what the filter says of the prompt, then an answer that it stops, then an annotation."""
    del argument
    safe = {"hate": {"filtered": False, "severity": "safe"}}
    prompt = {"prompt_filter_results": [{"prompt_index": 0, "content_filter_results": safe}], "choices": []}
    shell = _shell(body, "chat.completion.chunk")
    last = {"index": 0, "finish_reason": None, "content_filter_results": {"violence": {"filtered": True}},
            "content_filter_offsets": {"check_offset": 0, "start_offset": 0, "end_offset": 3}}  # fmt: skip
    events = [
        _event({"id": "", "object": "", "created": 0, "model": "", **prompt}),
        chunk(body, 0, {"role": "assistant", "content": "one"}),
        chunk(body, 0, {}, "content_filter"),
        _event(shell | {"choices": [last]}),
        _event(shell | {"choices": [], "usage": USAGE}),
        b"data: [DONE]\n\n",
    ]
    return Told(200, events, {"Content-Type": "text/event-stream"})


def breaks(body: dict[str, Any], argument: str) -> Told:
    """A word, and then: `error`, an end without one (`cut`, `quiet`), nonsense (`garbage`, `endless`); or a page
    (`html`), or an error with a success code around it (`wrapped`)."""
    error = {"error": {"message": "Rate limit reached", "type": "requests", "code": "rate_limit_exceeded"}}
    if argument == "html":
        return Told(200, b"<html>", {"Content-Type": "text/html"})
    if argument == "wrapped":
        return _whole(error)
    tails = {
        "error": [_event(error)],
        "garbage": [b"data: {nonsense\n\n"],
        "endless": [b"data: ", *[b"x" * (1 << 20)] * 5],
    }
    pieces = [chunk(body, 0, {"content": "one"}), *tails.get(argument, [])]
    return Told(200, pieces, {"Content-Type": "text/event-stream"}, cut=argument == "cut")


def fails(body: dict[str, Any], argument: str) -> Told:
    """An error: `429`, `quota`, `500`, `503`, `long`, `filter`."""
    del body
    if argument == "429":
        raise Refusal(429, "Rate limit reached for gpt in organization org-1", type="requests",
                      code="rate_limit_exceeded", headers={"retry-after-ms": "2500", "retry-after": "3"})  # fmt: skip
    if argument == "quota":
        raise Refusal(429, "You exceeded your current quota", type="insufficient_quota", code="insufficient_quota")
    if argument == "long":
        raise Refusal(400, "This model's maximum context length is 8 tokens.", param="messages",
                      code="context_length_exceeded")  # fmt: skip
    if argument == "filter":
        raise Refusal(400, "Invalid prompt: it was flagged.", code="content_filter")
    raise Refusal(int(argument), "The server had an error", type="server_error")


def says(body: dict[str, Any], argument: str) -> Told:
    """What it is told to."""
    one = SAYINGS[argument]
    if one.fault and not one.late:
        raise Refusal(400, one.fault, code="invalid_value")
    if "messages" not in body:
        shell = _shell(body, "text_completion")
        choices = [[{"index": 0, "text": piece, "logprobs": None, "finish_reason": None}] for piece in _cut(one.text)]
        end = {"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}
        if not body.get("stream"):
            return _whole(shell | {"choices": [end | {"text": one.text}], "usage": USAGE})
        events = [_event(shell | {"choices": told}) for told in (*choices, [end])]
        last = [_event(shell | {"choices": [], "usage": USAGE}), b"data: [DONE]\n\n"]
        return Told(200, [*events, *last], {"Content-Type": "text/event-stream"})
    told = {"content": one.text, "refusal": one.refusal, "reasoning_content": one.thought}
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in one.calls
    ]
    message = {name: value for name, value in {**told, "tool_calls": calls}.items() if value}
    if one.late:
        error = {"error": {"message": one.fault, "type": "invalid_request_error", "code": "invalid_value"}}
        return Told(200, [chunk(body, 0, message), _event(error)], {"Content-Type": "text/event-stream"})
    return said(body, [message], one.finish)


def sensible(body: dict[str, Any]) -> Told:
    """What the conversation asks for."""
    messages = body["messages"]
    contents = [message["content"] for message in messages if message["role"] == "user"]
    parts = contents[-1] if isinstance(contents[-1], list) else [{"type": "text", "text": contents[-1]}]
    form, stop = body.get("response_format") or {}, body.get("stop") or []
    made = reply(
        Question(
            " ".join(part["text"] for part in parts if part["type"] == "text"),
            [tool["function"]["name"] for tool in body.get("tools", ())],
            [message["content"] for message in messages if message["role"] == "tool"],
            form["json_schema"]["schema"] if form.get("type") == "json_schema" else None,
            any(part["type"] == "image_url" for part in parts),
            [stop] if isinstance(stop, str) else stop,
        ),
        len(json.dumps(messages)),
    )
    counted = {
        "prompt_tokens": made.prompt_tokens,
        "completion_tokens": made.completion_tokens,
        "total_tokens": made.prompt_tokens + made.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    made_calls = [
        {"id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": json.dumps(given)}}
        for i, (name, given) in enumerate(made.calls)
    ]
    if made_calls:
        return said(body, [{"tool_calls": made_calls}], "tool_calls", **counted)
    return said(body, [{"content": made.text}], **counted)


SCRIPTS: dict[str, Callable[[dict[str, Any], str], Told]] = {
    "text": text,
    "says": says,
    "calls": calls,
    "refusal": refuses_to,
    "thinks": thinks,
    "json": json_answer,
    "ends": ends,
    "counts": counts,
    "plays": plays,
    "filtered": filtered,
    "breaks": breaks,
    "fails": fails,
}
