"""Bodies that nobody sends by accident, for every endpoint that takes JSON: each must be answered with a 4xx."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Make = Callable[[dict[str, Any]], bytes]


@dataclass(frozen=True)
class Hostile:
    """One request: what is wrong with it, its body and its headers."""

    name: str
    body: bytes
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/json"})


@dataclass(frozen=True)
class Target:
    """An endpoint: a good body, the field that holds its input, and fields with a value of a wrong type each."""

    path: str
    good: dict[str, Any]
    input_field: str
    wrong: dict[str, tuple[Any, ...]]  # field → values it cannot have
    parts: Callable[[dict[str, Any]], dict[str, Any]] | None = None  # a body whose user says this part
    local_image: Callable[[str], dict[str, Any]] | None = None  # a part with a picture at that address
    file_named: Callable[[str], dict[str, Any]] | None = None  # a part with a file of that name


NUMBER: tuple[Any, ...] = ("1", "one", [], {}, True, [1], {"a": 1}, 1e400)
WHOLE: tuple[Any, ...] = (*NUMBER, 1.5, -1, 10**30)
FLAG: tuple[Any, ...] = ("true", 1, 0, [], {})
TEXT: tuple[Any, ...] = (1, 1.5, True, [], {}, ["a"])
OBJECT: tuple[Any, ...] = (1, "text", True, [], ["a"])
LIST: tuple[Any, ...] = (1, True, {}, {"a": 1}, [None], [1.5], [[[]]])

INSIDE = (
    "http://localhost/x.png",
    "http://127.0.0.1:8080/x.png",
    "http://127.1/x.png",
    "http://2130706433/x.png",
    "http://0x7f.1/x.png",
    "http://[::1]/x.png",
    "http://[::ffff:127.0.0.1]/x.png",
    "http://0.0.0.0/x.png",
    "http://10.0.0.8/x.png",
    "http://192.168.1.1/x.png",
    "http://172.16.3.4/x.png",
    "http://169.254.169.254/latest/meta-data/",
    "http://[fe80::1]/x.png",
    "http://metadata.google.internal/x.png",
    "http://printer.local/x.png",
    "http://127.0.0.1\u3002/x.png",
    "http://127.0.0.%31/x.png",
    "http://127.0.0.1\\.example.com/x.png",
    "http://metadata.google.%69nternal/x.png",
    "http://metadata.google.\uff49nternal/x.png",
    "http://[64:ff9b::a9fe:a9fe]/x.png",
    "http://[2002:7f00:1::]/x.png",
    "http://[::127.0.0.1]/x.png",
    "http://[ff02::1]/x.png",
    "http://224.0.0.1/x.png",
    "http://192.0.0.192/x.png",
    "http://example.com\u00ad.local/x.png",
    "http://api.default.svc/x.png",
    "http://intranet/x.png",
    "http://user:secret@example.org/x.png",
    "file:///etc/passwd",
    "ftp://example.org/x.png",
    "gopher://example.org/x",
    "javascript:alert(1)",
    "//example.org/x.png",
    "/etc/passwd",
    "",
    "http://",
    "http://example.org:99999/x.png",
    "data:image/png;base64,",
    "data:image/png;base64,####",
    "data:image/png,plain",
    "data:image/svg+xml;base64,PHN2Zy8+",
    "data:text/html;base64,PGI+",
    "data:;base64,AAAA",
    "data:image/png;base64,AA AA",
)


def hostile(target: Target) -> Iterator[Hostile]:
    """Every hostile body for this endpoint."""
    good = target.good
    sees = {**good, "model": "seeing"}  # takes pictures and files, so that it is the gateway that refuses
    yield from _no_json(good)
    yield from _odd_encodings(good)
    yield from _odd_values(target)
    for name, values in target.wrong.items():
        for i, value in enumerate(values):
            yield Hostile(f"{name} of a wrong type ({i})", _dumped({**good, name: value}))
    if target.local_image is not None and target.parts is not None:
        for address in INSIDE:
            yield Hostile(
                f"a picture at {address[:40]!r}", _dumped({**sees, **target.parts(target.local_image(address))})
            )
    if target.file_named is not None and target.parts is not None:
        for name in ("../../etc/passwd", "/etc/passwd", "..\\..\\boot.ini", "a\u0000b.pdf", "x" * 5000, "a/b.pdf"):
            yield Hostile(f"a file called {name[:20]!r}", _dumped({**sees, **target.parts(target.file_named(name))}))


def _no_json(good: dict[str, Any]) -> Iterator[Hostile]:
    text = json.dumps(good)
    for name, body in {
        "nothing": b"",
        "blank": b"   ",
        "half": text[: len(text) // 2].encode(),
        "a comma too many": (text[:-1] + ",}").encode(),
        "two bodies": (text + text).encode(),
        "a comment": ("// hello\n" + text).encode(),
        "single quotes": text.replace('"', "'").encode(),
        "a list": b"[]",
        "a list with the body": f"[{text}]".encode(),
        "a number": b"5",
        "null": b"null",
        "a text": b'"hello"',
        "form data": b"model=m&input=x",
        "xml": b"<model>m</model>",
        "a pickle": b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00\x8c\x01a\x94.",
        "zeros": bytes(1000),
        "ones": b"\xff" * 1000,
        "a byte order mark": b"\xef\xbb\xbf" + text.encode(),
        "utf-16": text.encode("utf-16"),
        "utf-32": text.encode("utf-32"),
        "latin-1": text.replace("hello", "hell\u00f6").encode("latin-1"),
        "NaN": (text[:-1] + ', "temperature": NaN}').encode(),
        "Infinity": (text[:-1] + ', "temperature": Infinity}').encode(),
        "-Infinity": (text[:-1] + ', "temperature": -Infinity}').encode(),
        "1e999": (text[:-1] + ', "temperature": 1e999}').encode(),
        "many digits": (text[:-1] + ', "temperature": ' + "9" * 5000 + "}").encode(),
        "hexadecimal": (text[:-1] + ', "temperature": 0x1}').encode(),
        "a leading zero": (text[:-1] + ', "temperature": 01}').encode(),
        "a bare minus": (text[:-1] + ', "temperature": -}').encode(),
        "deep lists": b"[" * 50_000,
        "deep lists that end": b"[" * 20_000 + b"]" * 20_000,
        "deep objects": b'{"a":' * 20_000,
        "deep in a field": (text[:-1] + ', "metadata": ' + "[" * 10_000 + "]" * 10_000 + "}").encode(),
        "deep objects in a field": (text[:-1] + ', "metadata": ' + '{"a":' * 5000 + "1" + "}" * 5000 + "}").encode(),
        "a key twice": (text[:-1] + ', "model": "other"}').encode(),
        "an escaped key twice": (text[:-1] + ', "mod\\u0065l": "other"}').encode(),
        "a field whose name looks like places": (text[:-1] + ', "' + " - at " * 15_000 + '": 1}').encode(),
        "a raw newline in a text": text.replace("hello", "hel\nlo").encode(),
        "a broken escape": text.replace("hello", "hel\\qlo").encode(),
        "half a surrogate escape": text.replace("hello", "hel\\ud8lo").encode(),
        "an unclosed text": text.replace('hello"', "hello").encode(),
        "overlong utf-8": text.encode().replace(b"hello", b"hel\xc0\xaflo"),
        "a surrogate in utf-8": text.encode().replace(b"hello", b"hel\xed\xa0\x80lo"),
        "a cut character": text.encode().replace(b"hello", b"hel\xe2\x82"),
    }.items():
        if body != text.encode():
            yield Hostile(name, body)


def _odd_encodings(good: dict[str, Any]) -> Iterator[Hostile]:
    text = json.dumps(good).encode()
    bomb = gzip.compress(b" " * 5_000_000)
    typed = {"content-type": "application/json"}
    yield Hostile("gzip", gzip.compress(text), {**typed, "content-encoding": "gzip"})
    yield Hostile("a gzip bomb", bomb, {**typed, "content-encoding": "gzip"})
    yield Hostile("a bomb in a bomb", gzip.compress(bomb), {**typed, "content-encoding": "gzip, gzip"})
    yield Hostile("deflate", zlib.compress(text), {**typed, "content-encoding": "deflate"})
    yield Hostile("brotli by name only", text, {**typed, "content-encoding": "br"})
    yield Hostile("an encoding nobody knows", text, {**typed, "content-encoding": "x-secret"})
    yield Hostile("text/plain", text, {"content-type": "text/plain"})
    yield Hostile("a form", text, {"content-type": "application/x-www-form-urlencoded"})
    yield Hostile("multipart", text, {"content-type": "multipart/form-data; boundary=x"})
    yield Hostile("a type that is none", text, {"content-type": ";;;"})


def _odd_values(target: Target) -> Iterator[Hostile]:
    good, name = target.good, target.input_field
    yield Hostile("an empty object", b"{}")
    for missing in ("model", name):
        yield Hostile(f"no {missing}", _dumped({key: value for key, value in good.items() if key != missing}))
        yield Hostile(f"{missing} is null", _dumped({**good, missing: None}))
    yield Hostile("a field nobody knows", _dumped({**good, "surprise": 1}))
    yield Hostile("an empty field name", _dumped({**good, "": 1}))
    yield Hostile("a field name of ten thousand letters", _dumped({**good, "x" * 10_000: 1}))
    yield Hostile("__proto__", _dumped({**good, "__proto__": {"admin": True}}))
    yield Hostile("__class__", _dumped({**good, "__class__": "x"}))
    yield Hostile("a model that is not there", _dumped({**good, "model": "no-such-model"}))
    yield Hostile("a model with a path", _dumped({**good, "model": "../../etc/passwd"}))
    yield Hostile("a model of ten thousand letters", _dumped({**good, "model": "m" * 10_000}))
    yield Hostile("a model with a null character", _dumped({**good, "model": "a\u0000b"}))
    yield Hostile("a model that is a template", _dumped({**good, "model": "{{7*7}}${7*7}"}))
    yield Hostile("an empty model", _dumped({**good, "model": ""}))
    yield Hostile("input is empty", _dumped({**good, name: []}))
    yield Hostile("input is a tower", _dumped({**good, name: [[[["x"]]]]}))
    yield Hostile("input of fifty thousand nulls", _dumped({**good, name: [None] * 15_000}))
    yield Hostile("input of objects", _dumped({**good, name: [{}] * 2000}))
    yield Hostile("a body over the limit", _dumped({**good, "user": "x" * 200_000}))
    yield Hostile("many fields nobody knows", _dumped({**good, **{f"x{i}": i for i in range(4000)}}))


def _dumped(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()


PDF = base64.b64encode(b"%PDF-1.4 nothing").decode()

CHAT = Target(
    "/v1/chat/completions",
    {"model": "scripted", "messages": [{"role": "user", "content": "hello"}]},
    "messages",
    {
        "messages": (
            *LIST,
            "text",
            [{"role": "user"}],
            [{"content": "x"}],
            [{"role": "nobody", "content": "x"}],
            [{"role": 1, "content": "x"}],
            [{"role": "user", "content": 1}],
            [{"role": "user", "content": {}}],
            [{"role": "user", "content": [1]}],
            [{"role": "user", "content": [{}]}],
            [{"role": "user", "content": [{"type": "text"}]}],
            [{"role": "user", "content": [{"type": "text", "text": 1}]}],
            [{"role": "user", "content": [{"type": "hologram", "text": "x"}]}],
            [{"role": "user", "content": [{"type": "image_url", "image_url": "http://example.org/x.png"}]}],
            [{"role": "user", "content": "x", "name": 1}],
            [{"role": "user", "content": "x", "surprise": 1}],
            [{"role": "tool", "content": "x"}],
            [{"role": "tool", "content": "x", "tool_call_id": 1}],
            [{"role": "assistant"}],
            [{"role": "assistant", "content": None, "tool_calls": [{}]}],
            [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f"}}]}],
            [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {}}}]}],
            [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "a b", "arguments": "{}"}}]}],
            [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "?", "format": "wav"}}]}],
            [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "ogg"}}]}],
            [{"role": "user", "content": [{"type": "file", "file": {}}]}],
            [{"role": "user", "content": [{"type": "file", "file": {"file_id": "../x"}}]}],
        ),
        "temperature": (*NUMBER, -1, 3),
        "top_p": (*NUMBER, -1, 2),
        "n": (*WHOLE, 0, 1000),
        "stop": (1, True, {}, [1], [""], "", ["a"] * 5),
        "seed": ("1", 1.5, [], {}, True, 10**30),
        "presence_penalty": (*NUMBER, 5),
        "frequency_penalty": (*NUMBER, -5),
        "logit_bias": (*OBJECT, {"a": 1}, {"1": 1000}, {"1": "x"}, {"-1": 1}),
        "max_tokens": (*WHOLE, 0),
        "max_completion_tokens": (*WHOLE, 0),
        "stream": FLAG,
        "stream_options": (*OBJECT, {"include_usage": 1}, {"surprise": 1}, {"include_usage": True}),
        "logprobs": FLAG,
        "top_logprobs": (*WHOLE, 50, 5),
        "response_format": (
            *OBJECT,
            {},
            {"type": "yaml"},
            {"type": "json_schema"},
            {"type": "json_schema", "json_schema": {}},
        ),
        "tools": (
            *LIST,
            [{}],
            [{"type": "function"}],
            [{"type": "web_search"}],
            [{"type": "function", "function": {}}],
        ),
        "tool_choice": (*OBJECT, {}, "always", "required", {"type": "function"}),
        "parallel_tool_calls": FLAG,
        "user": TEXT,
        "metadata": (*OBJECT, {"a": 1}, {str(i): "x" for i in range(20)}),
        "reasoning_effort": (*TEXT, "gigantic"),
        "verbosity": (*TEXT, "loud"),
        "service_tier": (*TEXT, "free"),
        "store": FLAG,
        "modalities": (*LIST, ["audio"]),
        "audio": ({"voice": "x"},),
        "functions": ([{"name": "f"}],),
        "function_call": ("auto",),
        "web_search_options": ({},),
        "top_k": ("1", 1.5, [], {}, True, -2),
        "min_p": (*NUMBER, 2),
        "repetition_penalty": (*NUMBER, 0, -1),
        "ignore_eos": FLAG,
        "structured_outputs": (*OBJECT, {}, {"regex": "a", "grammar": "b"}),
    },
    parts=lambda part: {"messages": [{"role": "user", "content": [part]}]},
    local_image=lambda url: {"type": "image_url", "image_url": {"url": url}},
    file_named=lambda name: {
        "type": "file",
        "file": {"filename": name, "file_data": f"data:application/pdf;base64,{PDF}"},
    },
)

RESPONSES = Target(
    "/v1/responses",
    {"model": "scripted", "input": "hello"},
    "input",
    {
        "input": (
            *LIST,
            [{"role": "user"}],
            [{"content": "x"}],
            [{"role": "nobody", "content": "x"}],
            [{"role": 1, "content": "x"}],
            [{"role": "user", "content": 1}],
            [{"role": "user", "content": {}}],
            [{"role": "user", "content": [{}]}],
            [{"role": "user", "content": [{"type": "input_text"}]}],
            [{"role": "user", "content": [{"type": "input_text", "text": 1}]}],
            [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
            [{"role": "user", "content": [{"type": "output_text", "text": "x"}]}],
            [{"role": "assistant", "content": [{"type": "input_image", "image_url": "https://example.org/x.png"}]}],
            [{"role": "user", "content": [{"type": "input_image"}]}],
            [{"role": "user", "content": [{"type": "input_image", "file_id": "../x"}]}],
            [{"role": "user", "content": [{"type": "input_file"}]}],
            [{"role": "user", "content": [{"type": "input_file", "file_data": "data:text/csv;base64,/w=="}]}],
            [{"role": "user", "content": "x", "surprise": 1}],
            [{"role": "user", "content": "x", "type": 1}],
            [{"type": "hologram"}],
            [{"type": ["message"], "role": "user", "content": "x"}],
            [{"type": "web_search_call", "id": "x"}],
            [{"type": "function_call", "call_id": "c", "name": "f"}],
            [{"type": "function_call", "call_id": "c", "name": "f", "arguments": {}}],
            [{"type": "function_call", "call_id": "c", "name": "a b", "arguments": "{}"}],
            [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}],
            [{"type": "function_call_output", "call_id": "c", "output": "x"}],
            [{"type": "function_call_output", "call_id": 1, "output": "x"}],
            [{"type": "function_call_output", "call_id": "c", "output": {}}],
            [{"type": "reasoning", "summary": "x"}],
            [{"type": "reasoning", "summary": [{"type": "text", "text": "x"}]}],
            [{"type": "reasoning", "summary": [], "encrypted_content": 1}],
            [{"type": "item_reference", "id": 1}],
            [{"type": "item_reference", "id": "msg_" + "0" * 28}],
            [{"type": "item_reference", "id": "../../etc/passwd"}],
        ),
        "instructions": TEXT,
        "previous_response_id": (*TEXT, "", "resp_" + "0" * 24, "' OR 1=1 --", "x" * 300),
        "background": FLAG,
        "store": FLAG,
        "include": (*LIST, ["nonsense"]),
        "max_output_tokens": (*WHOLE, 0),
        "max_tool_calls": (*WHOLE, 0),
        "top_logprobs": (*WHOLE, 50),
        "text": (
            *OBJECT,
            {"format": {"type": "yaml"}},
            {"format": {"type": "json_schema"}},
            {"format": {"type": "json_schema", "name": "x", "schema": []}},
            {"verbosity": "loud"},
        ),
        "tools": (*LIST, [{}], [{"type": "function"}], [{"type": "web_search"}], [{"type": "mcp"}], [{"type": 1}]),
        "tool_choice": (
            *OBJECT,
            {},
            "always",
            "required",
            {"type": "function"},
            {"type": "function", "name": "f"},
            {"type": "web_search_preview"},
            {"type": "allowed_tools", "mode": "auto", "tools": []},
        ),
        "reasoning": (*OBJECT, {"effort": "gigantic"}, {"summary": 1}, {"mode": "pro"}),
        "truncation": (*TEXT, "auto"),
        "stream_options": (*OBJECT, {"include_usage": True}, {"include_obfuscation": True}),
        "conversation": ("conv_1", {"id": "conv_1"}),
        "prompt": ({"id": "pmpt_1"},),
        "metadata": (*CHAT.wrong["metadata"], {"k" * 65: "x"}, {"k": "x" * 513}),
        "prompt_cache_options": OBJECT,
        **{
            name: CHAT.wrong[name]
            for name in ("temperature", "top_p", "stream", "user", "parallel_tool_calls", "service_tier")
        },
    },
    parts=lambda part: {"input": [{"role": "user", "content": [part]}]},
    local_image=lambda url: {"type": "input_image", "image_url": url},
    file_named=lambda name: {
        "type": "input_file",
        "filename": name,
        "file_data": f"data:application/pdf;base64,{PDF}",
    },
)

COMPLETIONS = Target(
    "/v1/completions",
    {"model": "scripted", "prompt": "hello"},
    "prompt",
    {
        "prompt": (1, True, {}, [None], [1.5], [[]], [-1], [10**12], [["a"]], [1, "a"]),
        "best_of": (*WHOLE, 5),
        "echo": FLAG,
        "logprobs": (*WHOLE, 50),
        "suffix": (*TEXT, "x"),
        **{
            name: CHAT.wrong[name]
            for name in ("temperature", "top_p", "n", "stop", "seed", "stream", "user", "metadata")
        },
        "max_tokens": (*WHOLE, 0),
    },
)

EMBEDDINGS = Target(
    "/v1/embeddings",
    {"model": "embedder", "input": "hello"},
    "input",
    {
        "input": (1, True, {}, [], [None], [1.5], [[]], [-1], [10**12], [["a"]], ["a"] * 2049),
        "encoding_format": (*TEXT, "hex"),
        "dimensions": (*WHOLE, 0, 7),
        "user": TEXT,
    },
)

RERANK = Target(
    "/v1/rerank",
    {"model": "reranker", "query": "hello", "documents": ["a", "b"]},
    "documents",
    {
        "query": (*TEXT, ""),
        "documents": (1, True, {}, [], [None], [""], ["a"] * 2049, [{}], [{"text": 1}], [{"text": ""}]),
        "top_n": (*WHOLE, 0),
        "return_documents": FLAG,
        "user": TEXT,
    },
)

CLASSIFY = Target(
    "/v1/classify",
    {"model": "classifier", "input": "hello"},
    "input",
    {"input": (1, True, {}, [], [None], [""], "", [1], ["a"] * 2049), "user": TEXT},
)

_TURNS: tuple[Any, ...] = (
    *LIST,
    "text",
    [{"role": "user"}],
    [{"content": "x"}],
    [{"role": "nobody", "content": "x"}],
    [{"role": 1, "content": "x"}],
    [{"role": "user", "content": 1}],
    [{"role": "user", "content": ""}],
    [{"role": "user", "content": []}],
    [{"role": "user", "content": {}}],
    [{"role": "user", "content": [1]}],
    [{"role": "user", "content": [{}]}],
    [{"role": "user", "content": [{"type": "text"}]}],
    [{"role": "user", "content": [{"type": "text", "text": 1}]}],
    [{"role": "user", "content": [{"type": "hologram", "text": "x"}]}],
    [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "eternal"}}]}],
    [{"role": "user", "content": [{"type": "image", "source": "http://example.org/x.png"}]}],
    [{"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "../x"}}]}],
    [{"role": "user", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]}],
    [{"role": "user", "content": [{"type": "tool_result"}]}],
    [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": 1}]}],
    [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": ""}]}],
    [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": [{"type": "thinking"}]}]}],
    [{"role": "user", "content": "x", "surprise": 1}],
    [{"role": "assistant", "content": None}],
    [{"role": "assistant", "content": "x "}],
    [{"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": "{}"}]}],
    [{"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "a b", "input": {}}]}],
    [{"role": "assistant", "content": [{"type": "thinking", "thinking": "x"}]}],
)
_COUNTED: dict[str, tuple[Any, ...]] = {
    "messages": _TURNS,
    "system": (1, True, {}, [1], [{}], [{"type": "image"}]),
    "tools": (
        *LIST,
        [{}],
        [{"name": "f"}],
        [{"name": "a b", "input_schema": {}}],
        [{"name": "f", "input_schema": "{}"}],
        [{"name": "f", "input_schema": {"type": "string"}}],
        [{"type": "web_search_20250305", "name": "web_search"}],
        [{"type": "bash_20250124", "name": "bash"}],
    ),
    "tool_choice": (*OBJECT, {}, "any", {"type": "always"}, {"type": "any"}, {"type": "tool", "name": "f"}),
    "thinking": (*OBJECT, {}, {"type": "hard"}, {"type": "enabled"}, {"type": "enabled", "budget_tokens": 1}),
    "output_config": (*OBJECT, {"effort": "gigantic"}, {"format": {}}, {"format": {"type": "yaml"}}, {"surprise": 1}),
    "cache_control": (*OBJECT, {}, {"type": "eternal"}, {"type": "ephemeral", "ttl": "5y"}),
    "mcp_servers": (*LIST, [{"url": "http://127.0.0.1"}]),
    "context_management": OBJECT,
    "speed": (*TEXT, "slow"),
}


def _picture_at(url: str) -> dict[str, Any]:
    """A picture in Anthropic's words: an address, or the data that a data URL holds."""
    if url.startswith("data:"):
        media_type, _, data = url.removeprefix("data:").partition(";base64,")
        return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}
    return {"type": "image", "source": {"type": "url", "url": url}}


MESSAGES = Target(
    "/v1/messages",
    {"model": "scripted", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]},
    "messages",
    {
        **_COUNTED,
        "max_tokens": (*WHOLE, 0, None),
        "temperature": (*NUMBER, -1, 1.5),
        "top_p": (*NUMBER, -1, 2),
        "top_k": WHOLE,
        "stop_sequences": (1, True, {}, "a", [1], [""], [" "], ["a"] * 257),
        "stream": FLAG,
        "metadata": (*OBJECT, {"user_id": 1}, {"user_id": "x" * 257}, {"surprise": "x"}),
        "service_tier": (*TEXT, "free"),
        "container": (1, True, [], "c", {}),
        "inference_geo": (*TEXT, "us"),
    },
    parts=lambda part: {"messages": [{"role": "user", "content": [part]}]},
    local_image=_picture_at,
)

COUNT_TOKENS = Target(
    "/v1/messages/count_tokens",
    {"model": "scripted", "messages": [{"role": "user", "content": "hello"}]},
    "messages",
    {**_COUNTED, "max_tokens": (1, 9)},
    parts=MESSAGES.parts,
    local_image=_picture_at,
)

TARGETS = (CHAT, RESPONSES, COMPLETIONS, EMBEDDINGS, RERANK, CLASSIFY, MESSAGES, COUNT_TOKENS)
