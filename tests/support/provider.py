"""A provider that does what it is told: a real HTTP server on loopback, quick when it is well and broken on request.

It has a parser of its own and shares nothing with the product. The `model` of a request says how it behaves, as
`name` or `name:argument`:

- `instant:K` answers K words at once (16 where K is left out), `slow:K` one every five milliseconds; both honour
  `max_tokens`, `n`, `stream`, `stream_options`, `logprobs`, and count a token for a word of the prompt and of the
  answer. `instant` is also what benchmarks put behind a gateway: one write for one answer.
- every other name is a fault or a peculiarity; see the functions below `# --- scripts`.

What it saw is kept in `seen`; `cancelled` has the model of each request whose connection was closed by the other side
before it was answered to the end. `said` counts the words it has written, by the text of the prompt.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import msgspec
import uvloop

HANG_SECONDS = 30  # longer than any time-out a test sets


@dataclass(frozen=True)
class Seen:
    """One request as it arrived."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class Provider:
    """A running provider. `url` is what goes into `base_url`."""

    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    connections: int = 0  # made so far
    running: int = 0  # answers under way, of scripts that take time
    most: int = 0  # of them at once, so far
    most_of: Counter[str] = field(default_factory=Counter)  # the same by model
    running_of: Counter[str] = field(default_factory=Counter)
    said: Counter[str] = field(default_factory=Counter)

    def bodies(self, model: str) -> list[dict[str, Any]]:
        """Bodies of the requests for one model."""
        return [each.body for each in self.seen if each.body.get("model") == model]


@contextmanager
def running_provider(*, keep_seen: bool = True) -> Iterator[Provider]:
    """Start a provider on a free port of loopback, in a thread with a loop of its own."""
    provider, loop, ready = Provider(), uvloop.new_event_loop(), threading.Event()
    stop = asyncio.Event()

    async def serve() -> None:
        server = await loop.create_server(lambda: Connection(provider, keep_seen=keep_seen), "127.0.0.1", 0)
        provider.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        ready.set()
        await stop.wait()
        server.close()
        others = asyncio.all_tasks(loop) - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield provider
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


class Connection(asyncio.Protocol):
    """One connection: requests one after the other, kept open as HTTP/1.1 does."""

    def __init__(self, provider: Provider, *, keep_seen: bool) -> None:
        self.provider = provider
        self.keep_seen = keep_seen
        self.answered = 0
        self.closed = asyncio.Event()
        self._buffer = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._model = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self.transport: Any = transport  # uvloop's is no subclass of asyncio's
        self.provider.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio: an answer still being written was cancelled."""
        self.closed.set()
        if self._task is not None and not self._task.done():
            self.provider.cancelled.append(self._model)
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        first, *rest = self._buffer[:end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        size = int(headers.get("content-length", "0"))
        if len(self._buffer) < end + 4 + size:
            return
        body = msgspec.json.decode(bytes(self._buffer[end + 4 : end + 4 + size]))
        del self._buffer[: end + 4 + size]
        request = Seen(first.split(" ")[1], headers, body)
        if self.keep_seen:
            self.provider.seen.append(request)
        self._model = str(body.get("model", ""))
        name, _, argument = self._model.partition(":")
        doing = SCRIPTS[name](Exchange(self, request, argument))
        if doing is not None:
            self._task = asyncio.ensure_future(self._done(doing))
        else:
            self.answered += 1

    async def _done(self, doing: Awaitable[None]) -> None:
        self.provider.running += 1
        self.provider.most = max(self.provider.most, self.provider.running)
        model, running = self._model, self.provider.running_of
        running[model] += 1
        self.provider.most_of[model] = max(self.provider.most_of[model], running[model])
        try:
            await doing
        finally:
            self.provider.running -= 1
            running[model] -= 1
        self.answered += 1


@dataclass
class Exchange:
    """One request and the ways to answer it."""

    connection: Connection
    request: Seen
    argument: str

    @property
    def body(self) -> dict[str, Any]:
        """What was asked."""
        return self.request.body

    @property
    def chat(self) -> bool:
        """Whether a conversation was sent, not a prompt."""
        return self.request.path.endswith("/chat/completions")

    @property
    def most(self) -> int | None:
        """The longest answer that was asked for."""
        return self.body.get("max_completion_tokens") or self.body.get("max_tokens")

    @property
    def prompt_tokens(self) -> int:
        """Words of the prompt."""
        if "messages" in self.body:
            return sum(len(_words(message["content"]).split()) for message in self.body["messages"])
        prompt = self.body["prompt"]
        return len(prompt.split()) if isinstance(prompt, str) else len(prompt)

    def says(self, words: int) -> None:
        """So many words go out now."""
        if self.connection.keep_seen:
            prompt = (
                _words(self.body["messages"][-1]["content"]) if "messages" in self.body else str(self.body["prompt"])
            )
            self.connection.provider.said[prompt] += words

    def write(self, data: bytes) -> None:
        """Raw bytes."""
        self.connection.transport.write(data)

    def close(self) -> None:
        """Close, after what was written has left."""
        self.connection.transport.close()

    def whole(self, body: bytes, status: int = 200, kind: str = "application/json", **headers: str) -> None:
        """A whole answer."""
        self.write(_head(status, kind, len(body), **headers) + body)

    def fail(self, status: int, message: str = "No.", *, type: str = "", param: Any = None, code: Any = None,
             **headers: str) -> None:  # fmt: skip
        """An error in OpenAI's shape."""
        error = {"message": message, "type": type or "some_error", "param": param, "code": code}
        self.whole(json.dumps({"error": error}).encode(), status, **headers)

    def begin(self, kind: str = "text/event-stream; charset=utf-8") -> None:
        """The head of a streamed answer."""
        self.write(_head(200, kind))

    def piece(self, data: bytes) -> None:
        """Some bytes of a streamed answer."""
        self.write(b"%x\r\n%b\r\n" % (len(data), data))

    def chunk(
        self, delta: dict[str, Any] | None = None, finish: str | None = None, index: int = 0, **more: Any
    ) -> None:
        """One event of a streamed chat (or text) completion."""
        self.says(bool(delta and delta.get("content")))
        self.piece(_event(_choice(index, delta or {}, finish, chat=self.chat), more))

    def usage(self, completion: int, **more: Any) -> None:
        """The event that tells the usage."""
        self.piece(_event(None, {"usage": usage_of(self.prompt_tokens, completion) | more}))

    def end(self) -> None:
        """`[DONE]`, and the end of the body."""
        self.piece(b"data: [DONE]\n\n")
        self.write(b"0\r\n\r\n")

    async def hang(self) -> None:
        """Say nothing more."""
        await asyncio.sleep(HANG_SECONDS)


def _words(content: Any) -> str:
    """The text of a message, of whatever parts."""
    return content or "" if not isinstance(content, list) else " ".join(part.get("text", "") for part in content)


def usage_of(prompt: int, completion: int) -> dict[str, Any]:
    """OpenAI's usage object."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _head(status: int, kind: str, length: int | None = None, **headers: str) -> bytes:
    size = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} Whatever\r\ncontent-type: {kind}\r\n{size}\r\n{more}\r\n".encode()


def _choice(index: int, delta: dict[str, Any], finish: str | None, *, chat: bool) -> dict[str, Any]:
    logprobs = {"logprobs": delta.pop("logprobs")} if "logprobs" in delta else {}
    what = {"delta": delta} if chat else {"text": delta.get("content", "")}
    return {"index": index, **what, **logprobs, "finish_reason": finish}


def _event(choice: dict[str, Any] | None, more: dict[str, Any]) -> bytes:
    shell = {"id": "x-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return b"data: " + json.dumps({**shell, "choices": [choice] if choice else [], **more}).encode() + b"\n\n"


# --- good answers ------------------------------------------------------------------------------------------------

_END = b"data: [DONE]\n\n"


@lru_cache(maxsize=512)
def _instant_events(tokens: int, n: int, finish: str, logprobs: int, *, chat: bool) -> bytes:
    out = b"".join(_event(_choice(i, {"role": "assistant", "content": ""}, None, chat=chat), {}) for i in range(n))
    for position in range(tokens):
        for index in range(n):
            delta = {"content": _word(position)}
            if logprobs >= 0:
                delta["logprobs"] = _logprobs([position], logprobs, chat=chat)  # type: ignore[assignment]
            out += _event(_choice(index, delta, None, chat=chat), {})
    return out + b"".join(_event(_choice(i, {}, finish, chat=chat), {}) for i in range(n))


def _word(position: int) -> str:
    return f"w{position} "


def _logprobs(positions: list[int], top: int, *, chat: bool) -> dict[str, Any]:
    if chat:
        content = []
        for position in positions:
            token = {"token": _word(position), "logprob": -0.25, "bytes": list(_word(position).encode())}
            others = [{"token": f"o{i}", "logprob": -1.0 - i, "bytes": None} for i in range(top)]
            content.append({**token, "top_logprobs": others})
        return {"content": content, "refusal": None}
    return {
        "tokens": [_word(position) for position in positions],
        "token_logprobs": [-0.25 for _ in positions],
        "top_logprobs": [{f"o{i}": -1.0 - i for i in range(top)} for _ in positions],
        "text_offset": [0 for _ in positions],
    }


def _plan(exchange: Exchange) -> tuple[int, int, str, int]:
    """Tokens of a choice, choices, why they end, and alternatives of a token (-1: no logprobs)."""
    body = exchange.body
    wanted = int(exchange.argument or 16)
    tokens = wanted if exchange.most is None else min(wanted, exchange.most)
    asked = body.get("logprobs")
    logprobs = -1 if asked is None or asked is False else body.get("top_logprobs", 0) if asked is True else asked
    return tokens, body.get("n", 1), "stop" if tokens == wanted else "length", logprobs


def instant(exchange: Exchange) -> None:
    """All at once."""
    if "input" in exchange.body:
        return _embeddings(exchange)
    tokens, n, finish, logprobs = _plan(exchange)
    body = exchange.body
    usage = usage_of(exchange.prompt_tokens, tokens * n)
    exchange.says(tokens * n)
    if not body.get("stream"):
        return exchange.whole(json.dumps(_completion(exchange, tokens, n, finish, logprobs, usage)).encode())
    events = _instant_events(tokens, n, finish, logprobs, chat=exchange.chat)
    if (body.get("stream_options") or {}).get("include_usage"):
        events += _event(None, {"usage": usage})
    events += _END
    return exchange.write(_head(200, "text/event-stream") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(events), events))


def _completion(exchange: Exchange, tokens: int, n: int, finish: str, logprobs: int, usage: Any) -> dict[str, Any]:
    text = "".join(map(_word, range(tokens)))
    what = {"message": {"role": "assistant", "content": text}} if exchange.chat else {"text": text}
    told = {"logprobs": _logprobs(list(range(tokens)), logprobs, chat=exchange.chat)} if logprobs >= 0 else {}
    choices = [{"index": i, **what, **told, "finish_reason": finish} for i in range(n)]
    return {"id": "x-1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, "usage": usage}


def _embeddings(exchange: Exchange) -> None:
    inputs = exchange.body["input"]
    rows = [[float(len(one)), 0.5, -1.0] for one in inputs]
    as_text = exchange.argument != "floats" and exchange.body.get("encoding_format") == "base64"
    shown = [base64.b64encode(struct.pack("<3f", *row)).decode() if as_text else row for row in rows]
    data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(shown)]
    usage = {"prompt_tokens": sum(len(one.split()) if isinstance(one, str) else len(one) for one in inputs)}
    exchange.whole(json.dumps({"object": "list", "data": data[::-1], "model": "m", "usage": usage}).encode())


async def slow(exchange: Exchange) -> None:
    """A word every five milliseconds."""
    tokens, n, finish, _ = _plan(exchange)
    exchange.begin()
    for position in range(tokens):
        await asyncio.sleep(0.005)
        for index in range(n):
            exchange.chunk({"content": _word(position)}, index=index)
    for index in range(n):
        exchange.chunk(finish=finish, index=index)
    exchange.usage(tokens * n)
    exchange.end()


# --- scripts: faults ---------------------------------------------------------------------------------------------


async def hang_first(exchange: Exchange) -> None:
    """Not even a status."""
    await exchange.hang()


async def hang_head(exchange: Exchange) -> None:
    """A status, and then nothing."""
    exchange.begin()
    await exchange.hang()


async def hang_mid(exchange: Exchange) -> None:
    """Two words, and then nothing."""
    exchange.begin()
    exchange.chunk({"content": "one "})
    exchange.chunk({"content": "two "})
    await exchange.hang()


async def hang_end(exchange: Exchange) -> None:
    """A finished answer whose usage and end never come."""
    exchange.begin()
    exchange.chunk({"content": "one "}, finish="stop")
    await exchange.hang()


async def drip(exchange: Exchange) -> None:
    """Comments for ever, to look alive."""
    exchange.begin()
    for _ in range(int(HANG_SECONDS / 0.02)):
        exchange.piece(b": still here\n\n")
        await asyncio.sleep(0.02)


def cut(exchange: Exchange) -> None:
    """Two words, and the connection ends; with `finished`, after the choice had ended; with `first`, before a byte;
    with `usage`, in the middle of the last event."""
    if exchange.argument == "first":
        return exchange.close()
    exchange.begin()
    exchange.chunk({"content": "one "})
    exchange.chunk({"content": "two "}, finish="stop" if exchange.argument in {"finished", "usage"} else None)
    if exchange.argument == "usage":
        exchange.piece(b'data: {"choices": [], "usa')
    return exchange.close()


def quiet_end(exchange: Exchange) -> None:
    """The body ends as it should, without `[DONE]`; with `finished`, after the choice had ended."""
    exchange.begin()
    exchange.chunk({"content": "one "}, finish="stop" if exchange.argument == "finished" else None)
    exchange.write(b"0\r\n\r\n")


def half_json(exchange: Exchange) -> None:
    """An event that is cut in the middle, streamed or whole."""
    if not exchange.body.get("stream"):
        return exchange.whole(b'{"choices": [{"index"')
    exchange.begin()
    exchange.chunk({"content": "one "})
    exchange.piece(b'data: {"choices": [{"ind')
    return exchange.write(b"0\r\n\r\n")


def garbage(exchange: Exchange) -> None:
    """An event of JSON that is nothing like an answer: the argument."""
    exchange.begin()
    exchange.piece(b"data: " + exchange.argument.encode() + b"\n\n")
    exchange.end()


def no_http(exchange: Exchange) -> None:
    """Bytes that are no HTTP."""
    exchange.write(b"\x00\xffSSH-2.0 hello\r\n\r\n")
    exchange.close()


def html(exchange: Exchange) -> None:
    """A page for people."""
    exchange.whole(b"<html>Welcome!</html>", kind="text/html")


def long_line(exchange: Exchange) -> None:
    """One line of twelve megabytes."""
    exchange.begin()
    exchange.chunk({"content": "one "})
    for _ in range(12):
        exchange.piece(b"x" * (1 << 20))
    exchange.piece(b"\n\n")
    exchange.end()


def redirect(exchange: Exchange) -> None:
    """Elsewhere, but still here."""
    exchange.whole(b"", status=int(exchange.argument), location="/v1/elsewhere")


def status(exchange: Exchange) -> None:
    """An error of that status; `429` says when to come back, `401` shows the key it got."""
    code = int(exchange.argument)
    if code == 429:
        exchange.fail(429, "Rate limit reached in organization org-123", type="requests", retry_after="7")
    elif code == 401:
        exchange.fail(401, f"Incorrect API key provided: {exchange.request.headers.get('authorization')}")
    else:
        exchange.fail(code, f"Refused with {code}.", type="invalid_request_error", param="temperature", code="odd")


def refuse(exchange: Exchange) -> None:
    """A 400 that has this argument as its message, and the key in it."""
    messages = {
        "context": "This model's maximum context length is 8 tokens.",
        "controls": "\x1b[31mred\r\n\x00" + "x" * 5000,
        "key": f"You said {exchange.request.headers.get('authorization')}",
        "filter": "The prompt was filtered.",
    }
    code = {"context": "context_length_exceeded", "filter": "content_filter", "controls": "a b\n"}.get(
        exchange.argument
    )
    param = "par am\n" if exchange.argument == "controls" else None
    exchange.fail(400, messages[exchange.argument], type="invalid_request_error", param=param, code=code)


def error_inside(exchange: Exchange) -> None:
    """An error after a status of 200: `json` whole, `first` as the first event, `mid` after a word, `text` as a text,
    `flat` without `error`, `limit` with a number for a code, `busy` the same after a word."""
    error: Any = {"message": "maximum context length", "type": "invalid_request_error", "code": None}
    if exchange.argument == "json":
        return exchange.whole(json.dumps({"error": error}).encode())
    exchange.begin()
    if exchange.argument == "mid":
        exchange.chunk({"content": "one "})
        error = {"message": "it broke", "type": "server_error", "code": None}
    elif exchange.argument == "text":
        error = "it broke"
    elif exchange.argument in {"limit", "busy"}:
        if exchange.argument == "busy":
            exchange.chunk({"content": "one "})
        error = {"message": "slow down", "code": 429}
    flat = {"object": "error", "message": "too long", "type": "BadRequestError", "code": 400}
    exchange.piece(b"data: " + json.dumps(flat if exchange.argument == "flat" else {"error": error}).encode() + b"\n\n")
    return exchange.end()


def flaky(exchange: Exchange) -> None:
    """`STATUS,TIMES`: it fails with that status so many times, and is well ever after."""
    status, _, times = exchange.argument.partition(",")
    if len(exchange.connection.provider.bodies(str(exchange.body["model"]))) <= int(times):
        return exchange.fail(int(status), "Not now.", **({"retry_after": "0.01"} if status == "429" else {}))
    return instant(Exchange(exchange.connection, exchange.request, "3"))


async def late(exchange: Exchange) -> None:
    """`SECONDS,WORDS`: it begins so late, and then says them one after the other."""
    seconds, _, words = exchange.argument.partition(",")
    await asyncio.sleep(float(seconds))
    await slow(Exchange(exchange.connection, exchange.request, words or "3"))


async def says(exchange: Exchange) -> None:
    """This text, with a logprob of -0.25 a word, or of `LOGPROB|` before it."""
    logprob, bar, text = exchange.argument.rpartition("|")
    exchange.begin()
    words = [f"{word} " for word in text.split()]
    for word in words:
        told = {"token": word, "logprob": float(logprob) if bar else -0.25, "bytes": None, "top_logprobs": []}
        logprobs = {"logprobs": {"content": [told]}} if exchange.body.get("logprobs") else {}
        exchange.chunk({"content": word, **logprobs})
    exchange.chunk(finish="stop")
    exchange.usage(len(words))
    exchange.end()


# --- scripts: peculiarities --------------------------------------------------------------------------------------


def no_usage(exchange: Exchange) -> None:
    """It never says what it counted."""
    exchange.begin()
    for word in ("one ", "two ", "three "):
        exchange.chunk({"content": word})
    exchange.chunk(finish="stop")
    exchange.end()


def usage(exchange: Exchange) -> None:
    """Three words, and this JSON as the usage, in an event of its own or, after `=`, in that of the end."""
    told, _, in_last = exchange.argument.partition("=")
    exchange.begin()
    for word in ("one ", "two ", "three "):
        exchange.chunk({"content": word})
    if in_last:
        exchange.chunk(finish="stop", usage=json.loads(in_last))
    else:
        exchange.chunk(finish="stop")
        exchange.piece(_event(None, {"usage": json.loads(told)}))
    exchange.end()


def liar(exchange: Exchange) -> None:
    """It uses ten times what it was allowed, and says so."""
    exchange.begin()
    exchange.chunk({"content": "one "}, finish="length")
    exchange.usage(10 * (exchange.most or 1))
    exchange.end()


def odd_lines(exchange: Exchange) -> None:
    """Good events written in odd ways: `crlf`, `cr`, `multi` (an event of several data lines), `comments`, `bytes`
    (one at a time), `bom`, `space` (none after the colon), `open` (no blank line at the end), `extra` (fields nobody
    knows)."""
    how = exchange.argument
    more = {"x_trace": {"a": [1]}, "service_tier": "default"} if how == "extra" else {}
    events = _event(_choice(0, {"content": "Grüße, "}, None, chat=True), more)
    events += _event(_choice(0, {"content": "world", "x_mood": "good"}, "stop", chat=True), more)
    events += _event(None, {"usage": usage_of(5, 2)}) + _END
    if how == "crlf":
        events = events.replace(b"\n", b"\r\n")
    elif how == "cr":
        events = events.replace(b"\n", b"\r")
    elif how == "multi":
        events = events.replace(b', "choices"', b',\ndata: "choices"')
    elif how == "comments":
        events = b": hello\n\nretry: 10\nevent: message\nid: 7\n" + events.replace(b"\n\n", b"\n: and so on\n\n")
    elif how == "bom":
        events = b"\xef\xbb\xbf" + events
    elif how == "space":
        events = events.replace(b"data: ", b"data:")
    elif how == "open":
        events = events.rstrip(b"\n")
    exchange.begin()
    for at in range(0, len(events), 1 if how == "bytes" else len(events)):
        exchange.piece(events[at : at + (1 if how == "bytes" else len(events))])
    exchange.write(b"0\r\n\r\n")


def finish_always(exchange: Exchange) -> None:
    """A `finish_reason` in every chunk."""
    exchange.begin()
    for word in ("one ", "two ", "three "):
        exchange.chunk({"content": word}, finish="stop")
    exchange.usage(3)
    exchange.end()


def thinker(exchange: Exchange) -> None:
    """Thoughts before words, a list of parts as content, and a strange reason to end."""
    exchange.begin()
    exchange.chunk({"reasoning_content": "hm "})
    exchange.chunk({"reasoning": "well "})
    exchange.chunk({"content": [{"type": "text", "text": "So."}]})
    exchange.chunk({"refusal": " No."}, finish="end_turn")
    exchange.end()


def fewer(exchange: Exchange) -> None:
    """One choice, however many were asked for; with `more`, one beyond."""
    exchange.begin()
    exchange.chunk({"content": "one "}, finish="stop", index=7 if exchange.argument == "more" else 0)
    exchange.end()


def tools(exchange: Exchange) -> None:
    """Two calls at once, in pieces: `good`, `repeated` (id and name in each piece), `same-index` (0 for both),
    `no-index`, `object` (arguments are no text), `nameless`, `whole` (not streamed)."""
    how = exchange.argument
    first = [("call_a", "weather", ""), ("call_a", None, '{"city":'), ("call_a", None, ' "Paris"}')]
    second = [("call_b", "time", '{"zone":'), ("call_b", None, ' "CET"}')]
    if how == "whole":
        calls = [_call(0, "call_a", "weather", '{"city": "Paris"}'), _call(1, "call_b", "time", '{"zone": "CET"}')]
        message = {"role": "assistant", "content": None, "tool_calls": calls}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        return exchange.whole(json.dumps({"choices": [choice], "usage": usage_of(9, 8)}).encode())
    exchange.begin()
    for number, pieces in enumerate((first, second)):
        for place, (id, name, arguments) in enumerate(pieces):
            shown: Any = arguments
            index: int | None = number
            if how == "same-index":
                index = 0
            elif how == "no-index":
                index = None
            if how == "object":
                if place:
                    continue
                shown = {"city": "Paris"} if number == 0 else {"zone": "CET"}
            named = place == 0 or how == "repeated"
            known = name or pieces[0][1]
            name_shown = None if how == "nameless" else known if named else None
            exchange.chunk({"tool_calls": [_call(index, id if named else None, name_shown, shown)]})
    exchange.chunk(finish="stop" if how == "same-index" else "tool_calls")
    exchange.usage(8)
    return exchange.end()


def _call(index: int | None, id: str | None, name: str | None, arguments: Any) -> dict[str, Any]:
    function = {"arguments": arguments} | ({"name": name} if name else {})
    named = {"id": id, "type": "function"} if id else {}
    return {**({} if index is None else {"index": index}), **named, "function": function}


def able(exchange: Exchange) -> None:
    """Does whatever `interlace providers check` asks, as a good model would; `silent`: it tells no usage, `dull`: it
    sees, calls and thinks nothing, `liar`: its usage does not add up, `wrong`: its calls and objects have another
    shape, and it does not stop."""
    how, body = exchange.argument, exchange.body
    text = json.dumps(body["messages"])
    exchange.begin()
    if body.get("tools") and body["messages"][-1]["role"] == "user" and how != "dull":
        arguments = '{"town": "Paris"}' if how == "wrong" else '{"city": "Paris"}'
        for index in range(2 if "Rome" in text else 1):
            exchange.chunk({"tool_calls": [_call(index, f"call_{index}", "get_weather", arguments)]})
        exchange.chunk(finish="tool_calls")
    else:
        for word in _able_words(body, text, how):
            exchange.chunk({"content": word})
        exchange.chunk(finish="stop")
    if how == "liar":
        exchange.usage(20, total_tokens=999)
    elif how != "silent":
        thoughts = {"reasoning_tokens": 7 if "reasoning_effort" in body and how != "dull" else 0}
        exchange.usage(20, prompt_tokens=30, total_tokens=50, completion_tokens_details=thoughts)
    exchange.end()


def _able_words(body: dict[str, Any], text: str, how: str) -> list[str]:
    if "response_format" in body:
        return ['{"city": "Berlin"', "}" if how == "wrong" else ', "country": "Germany"}']
    if "Count" in text:
        return [f"{number} " for number in range(1, 10 if how == "wrong" or not body.get("stop") else 5)]
    if how == "dull":
        return ["Hm."]
    return ["Red."] if "image_url" in text else ["Hail."] if "hail" in text else ["Paris."]


def no_stream_options(exchange: Exchange) -> None:
    """It refuses to be asked for the usage of a stream."""
    if "stream_options" in exchange.body:
        return exchange.fail(400, "Unrecognized request argument supplied: stream_options", param="stream_options")
    return instant(Exchange(exchange.connection, exchange.request, ""))


def no_stream(exchange: Exchange) -> None:
    """It cannot stream, and answers whole whatever was asked."""
    body = {**exchange.body, "stream": False}
    request = Seen(exchange.request.path, exchange.request.headers, body)
    instant(Exchange(exchange.connection, request, exchange.argument))


def stale(exchange: Exchange) -> None:
    """It closes a kept connection just when it is used again; with `reset`, not even politely."""
    if exchange.connection.answered:
        if exchange.argument == "reset":
            wire = exchange.connection.transport.get_extra_info("socket")
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return exchange.connection.transport.abort()
        return exchange.close()
    return instant(Exchange(exchange.connection, exchange.request, "1"))


async def late_end(exchange: Exchange) -> None:
    """A good answer whose body ends a moment after its last event."""
    exchange.begin()
    exchange.chunk({"content": "one "}, finish="stop")
    exchange.usage(1)
    exchange.piece(_END)
    await asyncio.sleep(0.03)
    exchange.write(b"0\r\n\r\n")


async def bad_chunk(exchange: Exchange) -> None:
    """A word, and then a chunk whose size is no number; with `head`, a header without end instead."""
    if exchange.argument == "head":
        exchange.write(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000)
        return
    exchange.begin()
    exchange.chunk({"content": "one "})
    await asyncio.sleep(0.05)  # by itself, so that what was good is seen
    exchange.write(b"ZZ\r\nhello\r\n")


def gzip_anyway(exchange: Exchange) -> None:
    """Compressed, though nobody asked for it: a megabyte of blanks in a few hundred bytes."""
    exchange.whole(gzip.compress(b"data: " + b" " * (1 << 20)), kind="text/event-stream", content_encoding="gzip")


def embed(exchange: Exchange) -> None:
    """Embeddings that are wrong: `few`, `ragged`, `order`, `text`, `huge`; or right without `usage`: `plain`."""
    rows: Any = [[1.0, 2.0] for _ in exchange.body["input"]]
    indices: list[Any] = list(range(len(rows)))
    match exchange.argument:
        case "few":
            rows = rows[1:]
        case "ragged":
            rows[0] = [1.0]
        case "order":
            indices = [0 for _ in rows]
        case "text":
            rows[0] = "not base64!"
        case "huge":
            rows[0] = [1e300, 1.0]
        case "plain":
            indices = [None for _ in rows]
    data = [{"index": i, "embedding": row} for i, row in zip(indices, rows, strict=False)]
    exchange.whole(json.dumps({"data": data}).encode())


SCRIPTS: dict[str, Callable[[Exchange], Awaitable[None] | None]] = {
    script.__name__.replace("_", "-"): script
    for script in (
        instant, slow, hang_first, hang_head, hang_mid, hang_end, drip, cut, quiet_end, half_json, garbage, no_http,
        html, long_line, redirect, status, refuse, error_inside, no_usage, usage, liar, odd_lines, finish_always,
        thinker, fewer, tools, able, no_stream_options, no_stream, stale, embed, bad_chunk, gzip_anyway, late_end,
        flaky, late, says,
    )
}  # fmt: skip
