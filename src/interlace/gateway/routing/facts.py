"""What a choice is made from: facts of the request, and how each model stands now."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

import msgspec

from interlace.config import RouteSettings
from interlace.engines.texts import texts_of
from interlace.engines.types import GenerateRequest, ImagePart
from interlace.errors import InterlaceError
from interlace.ledger import Price

if TYPE_CHECKING:
    from interlace.gateway.calls import Ask

BreakerState = Literal["closed", "open", "half_open", "probing"]

PROMPT_BEGINNING = 256  # characters of a bare prompt by which a conversation is known again


@dataclass(frozen=True, slots=True)
class Asked:
    """Facts of one request. `needs` are words of `config.route_settings.NEEDS`; `moment` is in microseconds since 1970;
    `most_tokens`: the longest answer it allows."""

    needs: frozenset[str] = frozenset({"chat"})
    characters: int = 0
    plan: str = ""
    tags: frozenset[str] = frozenset()
    moment: int = 0
    most_tokens: int | None = None
    embedding: bool = False

    @property
    def utc(self) -> datetime:
        """The moment, with its zone."""
        return datetime.fromtimestamp(self.moment / 1e6, UTC)


@dataclass(frozen=True, slots=True)
class Standing:
    """How a model stands towards one request now. `problem`: why it cannot be asked; `first_token_seconds`: the median
    of its recent ones, None while there are none."""

    local: bool = True
    problem: InterlaceError | None = None
    breaker: BreakerState = "closed"
    price: Price | None = None
    first_token_seconds: float | None = None


def asked_of(ask: Ask, plan: str, tags: tuple[str, ...], moment: int) -> Asked:
    """The facts of one request."""
    return Asked(
        needs=needs_of(ask),
        characters=characters_of(ask),
        plan=plan,
        tags=frozenset(tags),
        moment=moment,
        most_tokens=most_tokens_of(ask),
        embedding=ask.embed is not None,
    )


def models_of(route: RouteSettings) -> list[str]:
    """Every model that a route names."""
    parts = [part.model for part in (route.canary, route.shadow) if part.model]
    return [*(one.model for one in route.models), *(one.model for one in route.fallbacks), *parts]


def seed_of(route: RouteSettings, ask: Ask, key_id: str, told: str | None) -> str:
    """What the draws of a request are made from: chance, or its conversation where the route keeps those together."""
    known = conversation_of(ask, told) if route.sticky else ""
    return f"{route.name}\0{key_id}\0{known}" if known else secrets.token_hex(8)


def needs_of(ask: Ask) -> frozenset[str]:
    """What the answering model must be able to do."""
    if ask.embed is not None:
        return frozenset({ask.embed.purpose})
    needs: set[str] = set()
    for request in ask.generate:
        needs.add("completion" if request.messages is None else "chat")
        if request.tools and request.tool_choice != "none":
            needs.add("tools")
        if request.output is not None:
            needs.add("json")
        if _has_images(request):
            needs.add("vision")
    return frozenset(needs)


def characters_of(ask: Ask) -> int:
    """Characters of the prompt's texts; of token ids, four for each."""
    if ask.embed is not None:
        return sum(map(len, ask.embed.read)) + 4 * sum(map(len, ask.embed.ids))
    texts = sum(len(text) for request in ask.generate for text in texts_of(request))
    return texts + 4 * sum(len(request.prompt_ids or ()) for request in ask.generate)


def most_tokens_of(ask: Ask) -> int | None:
    """The longest answer that is asked for, all parts together; None where one part leaves it open."""
    longest = [request.sampling.max_tokens for request in ask.generate]
    return None if None in longest else sum(tokens or 0 for tokens in longest)


def conversation_of(ask: Ask, told: str | None) -> str:
    """What a conversation is known by: what the caller calls it, else how it begins, up to the first word of its user;
    later turns begin alike."""
    named = told or ask.conversation or next((request.options.cache_key for request in ask.generate), "")
    if named:
        return f"named:{named}"
    if ask.embed is not None or not ask.generate:
        return ""
    request = ask.generate[0]
    if request.messages is None:
        return _digest((request.prompt or "")[:PROMPT_BEGINNING].encode())
    roles = [message.role for message in request.messages]
    until = roles.index("user") + 1 if "user" in roles else 1
    return _digest(msgspec.json.encode(request.messages[:until]))


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _has_images(request: GenerateRequest) -> bool:
    """Whether a message carries a picture."""
    turns = (message.content for message in request.messages or () if not isinstance(message.content, str))
    return any(isinstance(part, ImagePart) for parts in turns for part in parts)
