"""Nothing that callers ask for is lost in silence: random requests of every dialect go to every provider and back.

    body → (dialect) → neutral → (provider) → bytes → (a reader of the tests) → neutral → (a writer of the tests) → body

What comes back is what went in, or the tables said what becomes of it: refused, with a 400 that names the path the
caller wrote; unused, and then the header names it; mapped, as the functions in `mapped` say once more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interlace.config import PROVIDERS, ModelSettings
from interlace.engines.fields import (
    NAMES,
    Fields,
    Kept,
    Mapped,
    Native,
    Refused,
    Unused,
    at_home,
    check_fields,
    fields_of,
)
from interlace.engines.host.fields import LOCAL_FIELDS
from interlace.engines.remote.providers import wire_of
from interlace.engines.remote.wire import Fetched, Outgoing, Wire
from interlace.engines.types import GenerateRequest
from interlace.errors import InvalidRequest
from interlace.gateway.dialects import DIALECTS
from interlace.gateway.translation import Carried, Denied, Here
from tests.support.dialect_writers import normal_body, written_body
from tests.support.drawing import Json, paths_in
from tests.support.drawn_bodies import DRAWN, denied, drawn
from tests.support.neutral_form import canonical, normal, replace, said_by, without
from tests.support.provider_readers import (
    asked,
    read_anthropic,
    read_bedrock,
    read_gemini,
    read_openai,
    read_responses,
)
from tests.translation.mapped import CHANGES, expected, says_something

Read = Callable[[bytes], GenerateRequest]

KEYS = dict.fromkeys(
    ("AWS_BEARER_TOKEN_BEDROCK", "AZURE_OPENAI_API_KEY", *(f"{name}_API_KEY" for name in (
        "ANTHROPIC", "GEMINI", "GROQ", "MISTRAL", "TOGETHER"
    ))),
    "k",
)  # fmt: skip
OPENAI = "https://api.openai.com/v1"


@dataclass(frozen=True, slots=True)
class Far:
    """A provider: which functions of `mapped` are its own, who reads what it gets, and how it is configured."""

    kind: str
    read: Read
    settings: dict[str, Any]


FAR: dict[str, Far] = {
    "openai": Far("openai", read_openai, {"base_url": OPENAI}),
    "openai, which may store": Far("openai", read_openai, {"base_url": OPENAI, "store": True}),
    "openai, another server": Far("openai", read_openai, {"base_url": "http://127.0.0.1:9/v1"}),
    "openai, one that knows more": Far(
        "openai", read_openai, {"base_url": "http://127.0.0.1:9/v1", "extensions": True, "cache_marks": True}
    ),
    "openai, api: responses": Far("responses", read_responses, {"base_url": OPENAI, "api": "responses"}),
    "openai, api: responses, which may store": Far(
        "responses", read_responses, {"base_url": OPENAI, "api": "responses", "store": True}
    ),
    "azure": Far("openai", read_openai, {"engine": "azure", "base_url": "https://x.openai.azure.com"}),
    "anthropic": Far("anthropic", read_anthropic, {"engine": "anthropic"}),
    "bedrock, Anthropic's": Far(
        "bedrock, Anthropic's", read_bedrock, {"engine": "bedrock", "region": "eu-central-1", "model": "anthropic.x"}
    ),
    "bedrock, Amazon's": Far("bedrock", read_bedrock, {"engine": "bedrock", "region": "r", "model": "amazon.nova"}),
    "bedrock, another's": Far("bedrock", read_bedrock, {"engine": "bedrock", "region": "r", "model": "meta.llama"}),
    "vertex, Gemini 3": Far("gemini", read_gemini, {"engine": "vertex", "model": "gemini-3-pro"}),
    "vertex, Gemini 2": Far("gemini 2", read_gemini, {"engine": "vertex", "model": "gemini-2.5-pro"}),
    **{
        name: Far("openai", read_openai, {"engine": name}) for name in ("mistral", "groq", "together", "ollama", "vllm")
    },
}

# What is refused by its value, where a field as such is not: (kind, what the error names, a word of its message).
BY_VALUE = {
    ("anthropic", "temperature", "from 0 to 1"),
    ("anthropic", "messages", "PDF files and plain text"),
    ("anthropic", "messages", "cannot go on with an answer that has a format"),
    *(
        (kind, "messages", "would go on with the last message")
        for kind in ("anthropic", "bedrock", "bedrock, Anthropic's", "gemini", "gemini 2")
    ),
    ("bedrock", "tool_choice", "once the conversation has tool calls"),
    ("bedrock, Anthropic's", "tool_choice", "once the conversation has tool calls"),
    ("openai", "structured_outputs", "does not know"),
}


async def _fetch(outgoing: Outgoing) -> Fetched:
    raise AssertionError(outgoing)


def _wire(far: Far) -> Wire:
    given = {"engine": "openai", "model": "m"} | far.settings
    return wire_of(ModelSettings(name="far", **given), KEYS, _fetch)


WIRES = {name: _wire(far) for name, far in FAR.items()}
TABLES: dict[str, Fields] = {"local": LOCAL_FIELDS, **{name: wire.fields for name, wire in WIRES.items()}}


# --- one request -------------------------------------------------------------------------------------------------


def _unnumbered(param: str) -> str:
    """A path without its numbers."""
    return re.sub(r"\[\d+\]", "[]", param)


def _said(param: str, paths: set[str]) -> bool:
    """Whether the caller wrote what an error names, or something in it."""
    plain = _unnumbered(param)
    return any(path == plain or path.startswith((f"{plain}.", f"{plain}[")) for path in paths)


def _allowed(
    request: GenerateRequest, fields: Fields, words: Mapping[str, str], paths: set[str], where: str
) -> GenerateRequest | None:
    """The request without what the table refuses, each refusal having named what the caller wrote. None where nothing
    is left to ask."""
    last = request.messages[-1].role if request.messages else ""
    for _ in NAMES:
        unused, refusal = _checked(request, fields, words)
        if refusal is None:
            assert all(_said(name, paths) for name in unused), f"{where} has no use for {unused}: {paths}"
            gone = [name for name in fields_of(request) if isinstance(_fate(name, fields, request), Unused)]
            assert len(unused) == sum(len(request.asides) if name == "native.aside" else 1 for name in gone)
            return request
        assert refusal.status == 400
        assert _said(refusal.param or "", paths), f"{where} refused {refusal.param}: {paths}"
        refused = next(name for name in sorted(fields_of(request)) if isinstance(_fate(name, fields, request), Refused))
        if refused in {"prompt", "prompt_ids", "messages"}:
            return None
        request = _spoken(without(request, refused))
        if request.messages == () or (request.messages and request.messages[-1].role != last):
            return None
    raise AssertionError("refused without end")


def _checked(request: GenerateRequest, fields: Fields, words: Mapping[str, str]) -> tuple[list[str], Any]:
    """What the provider has no use for, and its refusal."""
    try:
        return check_fields(request, fields, words), None
    except InvalidRequest as error:
        return [], error


def _spoken(request: GenerateRequest) -> GenerateRequest:
    """Without the turns of which nothing is left."""
    if request.messages is None:
        return request
    left = tuple(turn for turn in request.messages if says_something(turn))
    return replace(request, messages=left)


def _fate(name: str, fields: Fields, request: GenerateRequest) -> object:
    return at_home(name, fields[name], request.dialect)


async def _generate(wire: Wire, request: GenerateRequest) -> bytes:
    return (await wire.generate(request, ask_usage=True)).body


def _sent(wire: Wire, request: GenerateRequest) -> bytes:
    """What the provider gets. With a key at hand nothing is waited for, so no event loop is needed."""
    try:
        _generate(wire, request).send(None)
    except StopIteration as stop:
        return bytes(stop.value)
    raise AssertionError("it waited for something")


def _refused(wire: Wire, request: GenerateRequest) -> InvalidRequest | None:
    try:
        wire.check(request)
    except InvalidRequest as error:
        return error
    return None


def there_and_back(dialect: str, body: Json, seen: dict[str, set[str]]) -> None:
    """One body to every provider and back."""
    table = DIALECTS[dialect].table
    paths = paths_in(body, set(table))
    ask = asked(dialect, body)
    (request,) = ask.generate
    assert normal_body(dialect, written_body(dialect, request)) == normal_body(dialect, body)
    local = msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=GenerateRequest)
    assert local == request
    _allowed(request, LOCAL_FIELDS, ask.words, paths, "local")
    for name, far in FAR.items():
        wire = WIRES[name]
        rest = _allowed(request, wire.fields, ask.words, paths, name)
        if rest is None:
            continue
        if (error := _refused(wire, rest)) is not None:
            by_value = {(kind, param) for kind, param, word in BY_VALUE if word in error.message}
            assert (far.kind, error.param) in by_value, f"{name}: {error.param}: {error.message}"
            continue
        want, got = expected(rest, wire.fields, far.kind), far.read(_sent(wire, rest))
        assert normal(got) == normal(want), name
        seen.setdefault(name, set()).update(fields_of(rest))
        if rest is request and normal(want) == normal(request):
            back = normal_body(dialect, written_body(dialect, canonical(got)))
            assert _plain(back) == _plain(normal_body(dialect, body)), name
            seen.setdefault("whole", set()).add(f"{dialect} {name}")


def _plain(body: Json) -> Json:
    """Without what a provider need not be told, because it changes nothing."""
    off = {"top_k": 0, "min_p": 0, "repetition_penalty": 1}
    if not body.get("tools") or body.get("tool_choice") == "none":
        off["parallel_tool_calls"] = False
    return _told({name: one for name, one in body.items() if name not in off or one != off[name]})


def _told(value: Any) -> Any:
    """Arguments as what they say: some providers want the object, not its text."""
    if isinstance(value, list):
        return [_told(one) for one in value]
    if isinstance(value, dict):
        return {name: said_by(one) if name == "arguments" else _told(one) for name, one in value.items()}
    return value


# --- many requests -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DRAWN)
@given(random=st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_comes_back_is_what_went_in(dialect: str, random: Random) -> None:
    """A field would be lost between a client and a provider without anybody having said so."""
    there_and_back(dialect, drawn(dialect, random), {})


@pytest.mark.nightly
@pytest.mark.parametrize("dialect", DRAWN)
@given(random=st.randoms(use_true_random=False))
@settings(max_examples=15000, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_comes_back_is_what_went_in_all_night(dialect: str, random: Random) -> None:
    """As above, for the rare."""
    there_and_back(dialect, drawn(dialect, random), {})


def test_every_field_of_every_dialect_went_to_every_provider() -> None:
    """A path that no request says, or a field that a provider keeps by its table alone, could be lost, and no property
    would notice. The same requests every time."""
    seen: dict[str, set[str]] = {}
    for dialect in DRAWN:
        table, said = DIALECTS[dialect].table, set()
        for seed in range(400):
            body = drawn(dialect, Random(seed), 0.12)
            said |= paths_in(body, set(table))
            there_and_back(dialect, body, seen)
        undrawn = {path for path, place in table.items() if not isinstance(place, Denied)} - said - RESOLVED
        assert not undrawn, dialect
    sayable = set().union(*map(_names_of, DRAWN))
    for name, far in FAR.items():
        fates = TABLES[name]
        through = {one for one in sayable if isinstance(fates[one], Kept | Mapped | Native)}
        unread = through - seen[name] - NEVER.get(far.kind, set())
        assert not unread, name
        assert any(whole.endswith(f" {name}") for whole in seen["whole"]), name


# What no dialect can say to a provider: its own fields are those of another dialect, or its dialect has none.
RESOLVED = {
    path
    for spoken in DIALECTS.values()
    for path, place in spoken.table.items()
    if path.endswith("file_id") and isinstance(place, Here)
}  # the gateway puts the file itself there before a provider is told anything
NEVER = {
    "responses": {"tools.native"},
}


def _names_of(dialect: str) -> set[str]:
    places = DIALECTS[dialect].table.values()
    return {name for place in places if isinstance(place, Carried) for name in place.names}


@pytest.mark.parametrize("name", FAR)
def test_every_mapping_has_its_function(name: str) -> None:
    """A mapped field without a function here would be compared as if it were kept, or not at all."""
    mapped = {one for one, fate in TABLES[name].items() if isinstance(fate, Mapped)}
    assert mapped - set(CHANGES[FAR[name].kind]) == set()


def test_every_provider_is_there() -> None:
    """A provider that no random request reaches could lose what it likes."""
    assert {far.settings.get("engine", "openai") for far in FAR.values()} == set(PROVIDERS)


@pytest.mark.parametrize(
    ("dialect", "path"),
    [
        (dialect, path)
        for dialect in DRAWN
        for path, place in DIALECTS[dialect].table.items()
        if isinstance(place, Denied) and "=" not in path and dialect != "openai.responses"
    ],
)
def test_what_is_denied_is_named(dialect: str, path: str) -> None:
    """A field that nobody here can honour would be passed over, or refused by another's name."""
    for seed in range(5):
        body = denied(dialect, Random(seed), path)
        with pytest.raises(InvalidRequest) as caught:
            asked(dialect, body)
        assert caught.value.status == 400
        assert _unnumbered(caught.value.param or "") == path
