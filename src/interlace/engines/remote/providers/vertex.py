"""Gemini's generateContent, on Vertex AI with tokens of Google Cloud, or by the Gemini API with a key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from interlace.config import ModelSettings
from interlace.engines.remote.failures import Complaint
from interlace.engines.remote.providers.vertex_answer import GeminiAnswer
from interlace.engines.remote.providers.vertex_embeddings import embed_body, embed_method, read_embeddings
from interlace.engines.remote.providers.vertex_fields import VERTEX_FIELDS
from interlace.engines.remote.providers.vertex_request import generate_body, prompt_body
from interlace.engines.remote.providers.vertex_tokens import Tokens
from interlace.engines.remote.secret import Secret, read_key
from interlace.engines.remote.sse import EventReader
from interlace.engines.remote.wire import EVENT_STREAM, JSON, Fetch, Outgoing, Usual
from interlace.engines.types import Embeddings, EmbedRequest, GenerateRequest
from interlace.errors import ConfigError, EngineFailed

GEMINI_API = "https://generativelanguage.googleapis.com/v1"
API_KEY = "GEMINI_API_KEY"

_DELAY = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s")
_TOO_LONG = re.compile(r"exceeds? the maximum number of tokens|input token count", re.IGNORECASE)
_OURS = {"API_KEY_INVALID", "API_KEY_SERVICE_BLOCKED", "BILLING_DISABLED", "SERVICE_DISABLED", "CONSUMER_INVALID"}


class VertexWire:
    """One model of Google's. `tokens` are those of Vertex AI; without them goes a `key`."""

    def __init__(self, settings: ModelSettings, key: Secret | None, tokens: Tokens | None) -> None:
        self.fields = VERTEX_FIELDS
        self._settings = settings
        self._model = settings.model
        self._key, self._tokens = key, tokens
        self._url = _vertex_url(settings) if settings.project else _gemini_url(settings)

    def check(self, request: GenerateRequest) -> None:
        """Raises `InvalidRequest` for what Gemini cannot say."""
        generate_body(request, self._model)

    async def generate(self, request: GenerateRequest, *, ask_usage: bool) -> Outgoing:
        """A request to streamGenerateContent, or to generateContent where answers come whole."""
        del ask_usage  # always told
        body = generate_body(request, self._model)
        if self._settings.stream:
            return await self._outgoing("streamGenerateContent?alt=sse", body, EVENT_STREAM)
        return await self._outgoing("generateContent", body, JSON)

    async def embed(self, request: EmbedRequest) -> Outgoing:
        """All texts in one call."""
        body = embed_body(request, self._settings)
        return await self._outgoing(embed_method(request, self._settings), body, JSON)

    async def count(self, request: GenerateRequest) -> Outgoing | None:
        """Google's own counter, which the Gemini API wants to see the whole request."""
        body = prompt_body(request, self._model)
        if not self._settings.project:
            body = {"generateContentRequest": {"model": _resource(self._model), **body}}
        return await self._outgoing("countTokens", body, JSON)

    def read_count(self, body: bytes) -> int:
        """`totalTokens`, which an empty prompt leaves out."""
        try:
            return msgspec.json.decode(body, type=_Count).total_tokens
        except (ValueError, RecursionError):
            raise EngineFailed("The server behind this model sent what is no count. Try again.") from None

    def frames(self, content_type: str) -> EventReader | None:
        """Server-sent events, or JSON."""
        if content_type == EVENT_STREAM:
            return EventReader()
        if content_type == JSON:
            return None
        raise EngineFailed("The server behind this model sent neither events nor JSON. Try again.")

    def answer(self, request: GenerateRequest, prompt_tokens: int) -> GeminiAnswer:
        """A reader of one answer."""
        return GeminiAnswer(request, prompt_tokens)

    def embeddings(self, request: EmbedRequest, body: bytes, prompt_tokens: int) -> Embeddings:
        """Rows of numbers."""
        return read_embeddings(body, len(request.texts), self._settings.dimensions, prompt_tokens)

    def complaint(self, value: object, headers: Mapping[str, str]) -> Complaint:
        """Google's error object, alone or in a list; `RetryInfo` among its details says when to come back."""
        del headers
        if isinstance(value, list) and value:
            value = value[0]
        error = value.get("error") if isinstance(value, dict) else None
        if not isinstance(error, dict):
            return Complaint()
        message, type = (text if isinstance(text := error.get(name), str) else "" for name in ("message", "status"))
        status = code if isinstance(code := error.get("code"), int) else 0
        details = [one for one in error.get("details") or () if isinstance(one, dict)]
        reasons = {one["reason"] for one in details if isinstance(one.get("reason"), str)}
        if status == 401 and self._tokens is not None:
            self._tokens.forget()
        code = ""
        if reasons & _OURS or type == "FAILED_PRECONDITION":
            code = "insufficient_quota"  # the operator's account, not the caller's request
        elif status == 400 and _TOO_LONG.search(message):
            code = "context_length_exceeded"
        return Complaint(message, type=type, code=code, status=status, again=_again(details))

    def hide(self, text: str) -> str:
        """Without the key, or the token."""
        if self._key is not None:
            text = self._key.hidden_in(text)
        return text if self._tokens is None else self._tokens.hide(text)

    async def _outgoing(self, method: str, body: Mapping[str, object], accept: str) -> Outgoing:
        headers = {} if self._key is None else {"x-goog-api-key": self._key.reveal()}
        if self._tokens is not None:
            headers = await self._tokens.headers()
        return Outgoing(f"{self._url}:{method}", msgspec.json.encode(body), headers, accept)


class _Count(msgspec.Struct, frozen=True, rename="camel"):
    total_tokens: int = 0


def _again(details: list[dict[str, Any]]) -> float | None:
    """Seconds to wait, from `RetryInfo`."""
    for one in details:
        told = one.get("retryDelay")
        if isinstance(told, str) and (found := _DELAY.fullmatch(told)):
            return float(found[1])
    return None


def _resource(model: str) -> str:
    return model if "/" in model else f"models/{model}"


def _vertex_url(settings: ModelSettings) -> str:
    """The model's address on Vertex AI. A name with a slash is a resource of the project's, such as endpoints/123."""
    model = settings.model
    path = model if "/" in model else f"publishers/{settings.publisher or 'google'}/models/{model}"
    where = f"projects/{quote(settings.project, safe='')}/locations/{quote(settings.location, safe='')}"
    return f"{_base(settings)}/{where}/{quote(path, safe='/')}"


def _base(settings: ModelSettings) -> str:
    """Where Vertex AI is asked: each location has a host of its own."""
    location = settings.location
    hosts = {"global": "aiplatform", "us": "aiplatform.us.rep", "eu": "aiplatform.eu.rep"}
    host = f"{hosts.get(location, f'{location}-aiplatform')}.googleapis.com"
    return settings.base_url.rstrip("/") or f"https://{host}/v1beta1"


def _gemini_url(settings: ModelSettings) -> str:
    base = settings.base_url.rstrip("/") or GEMINI_API
    return f"{base}/{quote(_resource(settings.model), safe='/')}"


def usual(settings: ModelSettings, env: Mapping[str, str]) -> Usual:
    """See `wire.Usual`."""
    del env
    if settings.project:
        return Usual(_base(settings), settings.api_key, "" if settings.api_key else "Google's credentials")
    return Usual(settings.base_url or GEMINI_API, settings.api_key or f"${{{API_KEY}}}")


def make(settings: ModelSettings, env: Mapping[str, str], fetch: Fetch) -> VertexWire:
    """See `wire.Make`. With a project it is Vertex AI, by tokens unless a key is named; without one the Gemini API, by
    a key."""
    del fetch
    named = settings.api_key
    if not named and not settings.project:
        named = f"${{{API_KEY}}}"
        if not env.get(API_KEY):
            raise ConfigError(
                "Engine vertex needs a project, or a key of the Gemini API. Write `project:`, or set the variable "
                f"{API_KEY}."
            )
    key = read_key(named, env)
    return VertexWire(settings, key, Tokens() if key is None else None)
