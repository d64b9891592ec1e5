"""The tables of OpenAI, Azure, the presets and Anthropic tell the truth, field by field, by what goes out."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from interlace.config import ModelSettings
from interlace.engines.fields import NAMES, Mapped, Native, Refused, Unused, fields_of
from interlace.engines.remote.providers import wire_of
from interlace.engines.remote.wire import Fetched, Outgoing, Wire
from interlace.engines.types import GenerateRequest, Message, Tool
from interlace.errors import InvalidRequest
from tests.providers.test_cloud_tables import PAIRS

KEYS = dict.fromkeys(("ANTHROPIC_API_KEY", "MISTRAL_API_KEY", "GROQ_API_KEY", "TOGETHER_API_KEY"), "k")

SERVERS: dict[str, dict[str, Any]] = {
    "openai": {"base_url": "https://api.openai.com/v1"},
    "openai that may store": {"base_url": "https://api.openai.com/v1", "store": True},
    "another server": {"base_url": "http://127.0.0.1:9/v1"},
    "another server that knows more": {"base_url": "http://127.0.0.1:9/v1", "extensions": True, "cache_marks": True},
    "responses": {"base_url": "https://api.openai.com/v1", "api": "responses"},
    "azure": {"engine": "azure", "base_url": "https://x.openai.azure.com", "api_key": "${GROQ_API_KEY}"},
    "anthropic": {"engine": "anthropic"},
    **{name: {"engine": name} for name in ("mistral", "groq", "together", "ollama", "vllm")},
}

# Mapped to the same as without it: what it asks for holds anyway, or is told by the rest of the turn.
SAME = {
    "call.followed_by": {"openai"},
    "message.is_error": {"openai", "responses"},
    "output.lax": {"anthropic"},
    "reasoning.adaptive": {"openai", "responses"},
    "reasoning.summary": {"responses"},
}


async def _fetch(outgoing: Outgoing) -> Fetched:
    raise AssertionError(outgoing)


def _wire(server: str) -> Wire:
    settings = ModelSettings(name="far", model="m", **({"engine": "openai"} | SERVERS[server]))
    return wire_of(settings, KEYS, _fetch)


def _kind(server: str) -> str:
    return server if server in {"anthropic", "responses"} else "openai"


def _sealed(request: GenerateRequest) -> GenerateRequest:
    """The Responses API knows a thought by its name."""
    messages = []
    for message in request.messages or ():
        parts = [
            msgspec.structs.replace(part, id="rs_1") if type(part).__name__ == "ThinkingPart" else part
            for part in message.parts
        ]
        messages.append(msgspec.structs.replace(message, content=tuple(parts)))
    return msgspec.structs.replace(request, messages=tuple(messages))


def _asked(request: GenerateRequest) -> GenerateRequest:
    """Anthropic goes on with the last turn if it is the assistant's, so a user's must follow."""
    messages = request.messages
    if not messages or messages[-1].role != "assistant" or request.prefill:
        return request
    return msgspec.structs.replace(request, messages=(*messages, Message("user", "and?")))


def _body(wire: Wire, request: GenerateRequest) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.json.decode(asyncio.run(wire.generate(request, ask_usage=True)).body)
    return body


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("name", NAMES)
def test_the_table_is_true(server: str, name: str) -> None:
    """What is refused is refused by the wire as well; what is kept or mapped is seen in the request; what has no use
    changes nothing."""
    wire = _wire(server)
    fate, (told, plain) = wire.fields[name], PAIRS[name]
    assert name in fields_of(told)
    if name.startswith("part.thinking") and server == "responses":
        told, plain = _sealed(told), _sealed(plain)
    if server == "anthropic":
        told, plain = _asked(told), _asked(plain)
    if isinstance(fate, Native):
        told, plain = (msgspec.structs.replace(one, dialect=fate.dialect) for one in (told, plain))
    if isinstance(fate, Refused):
        assert fate.why.endswith(".")
        with pytest.raises(InvalidRequest):
            wire.check(told)
        return
    assert wire.check(told) is None
    bodies = [_body(wire, request) for request in (told, plain)]
    mapped_away = isinstance(fate, Mapped) and _kind(server) in SAME.get(name, ())
    assert (bodies[0] == bodies[1]) == (isinstance(fate, Unused) or mapped_away), fate


@pytest.mark.parametrize("server", SERVERS)
def test_what_another_dialect_knows_alone_is_refused(server: str) -> None:
    """Fields of one provider never reach another, whatever they are called."""
    wire = _wire(server)
    for request in (
        GenerateRequest("r", messages=(Message("user", "a"),), native={"x": 1}, dialect="other"),
        GenerateRequest("r", messages=(Message("user", "a"),), tools=(Tool("a", native={"x": 1}),), dialect="other"),
    ):
        with pytest.raises(InvalidRequest):
            wire.check(request)
        assert '"x"' not in asyncio.run(wire.generate(request, ask_usage=False)).body.decode()
