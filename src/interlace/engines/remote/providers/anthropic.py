"""Anthropic's Messages API."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgspec

from interlace.config import ModelSettings
from interlace.engines.fields import Fields, check_fields
from interlace.engines.remote.failures import Complaint, read_complaint
from interlace.engines.remote.providers.anthropic_answer import AnthropicAnswer
from interlace.engines.remote.providers.anthropic_fields import ANTHROPIC_FIELDS
from interlace.engines.remote.providers.anthropic_request import BETA, betas_of, count_body, message_body
from interlace.engines.remote.secret import Secret, read_key
from interlace.engines.remote.sse import EventReader
from interlace.engines.remote.usage import number_in
from interlace.engines.remote.wire import EVENT_STREAM, JSON, Fetch, Outgoing, Usual
from interlace.engines.types import Embeddings, EmbedRequest, GenerateRequest
from interlace.errors import EngineFailed, InvalidRequest

BASE_URL, KEY, VERSION = "https://api.anthropic.com", "${ANTHROPIC_API_KEY}", "2026-10-21"

# What an error's type means, as HTTP says it: an error inside a stream has no status.
_STATUSES = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "gateway_timeout_error": 504,
    "overloaded_error": 529,
}


class AnthropicWire:
    """One model at Anthropic, or at a server that speaks as it does."""

    fields: Fields = ANTHROPIC_FIELDS

    def __init__(self, settings: ModelSettings, key: Secret | None) -> None:
        self.settings = settings
        self._key = key
        base = (settings.base_url or BASE_URL).removesuffix("/v1")
        self._url = f"{base}/v1/messages"

    def check(self, request: GenerateRequest) -> None:
        """Raises `InvalidRequest` for what the API does not know."""
        message_body(request, self.settings)
        check_fields(request, self.fields, {})

    async def generate(self, request: GenerateRequest, *, ask_usage: bool) -> Outgoing:
        """A message; its usage comes unasked."""
        del ask_usage
        accept = EVENT_STREAM if self.settings.stream else JSON
        return self._outgoing("", message_body(request, self.settings), accept, betas_of(request))

    async def embed(self, request: EmbedRequest) -> Outgoing:
        """There are no embeddings."""
        del request
        raise InvalidRequest("This provider makes no embeddings.", param="model", code="unsupported_parameter")

    async def count(self, request: GenerateRequest) -> Outgoing | None:
        """The provider's own counter, which costs nothing."""
        return self._outgoing("/count_tokens", count_body(request, self.settings), JSON, betas_of(request))

    def read_count(self, body: bytes) -> int:
        """Its `input_tokens`."""
        try:
            told = msgspec.json.decode(body, type=dict[str, Any])
        except (ValueError, RecursionError):
            told = {}
        if (tokens := number_in(told, "input_tokens")) is None:
            raise EngineFailed("The server behind this model did not tell a number of tokens. Try again.")
        return tokens

    def frames(self, content_type: str) -> EventReader | None:
        """Server-sent events, or JSON."""
        if content_type == EVENT_STREAM:
            return EventReader()
        if content_type == JSON:
            return None
        raise EngineFailed("The server behind this model sent neither events nor JSON. Try again.")

    def answer(self, request: GenerateRequest, prompt_tokens: int) -> AnthropicAnswer:
        """A reader of one answer."""
        return AnthropicAnswer(request, prompt_tokens)

    def embeddings(self, request: EmbedRequest, body: bytes, prompt_tokens: int) -> Embeddings:
        """Never asked."""
        raise NotImplementedError

    def complaint(self, value: object, headers: Mapping[str, str]) -> Complaint:
        """Anthropic's error object. An empty purse is told as a fault of the request, which it is not."""
        del headers
        complaint = read_complaint(value)
        code = "insufficient_quota" if "credit balance" in complaint.message.lower() else complaint.code
        return dataclasses.replace(complaint, code=code, status=_STATUSES.get(complaint.type, complaint.status))

    def hide(self, text: str) -> str:
        """Without the key."""
        return text if self._key is None else self._key.hidden_in(text)

    def _outgoing(self, path: str, body: Mapping[str, object], accept: str, betas: str) -> Outgoing:
        headers = {"anthropic-version": VERSION}
        if betas:
            headers[BETA] = betas
        if self._key is not None:
            headers["x-api-key"] = self._key.reveal()
        return Outgoing(self._url + path, msgspec.json.encode(body), headers, accept)


def usual(settings: ModelSettings, env: Mapping[str, str]) -> Usual:
    """See `wire.Usual`."""
    del env
    return Usual(settings.base_url or BASE_URL, settings.api_key or KEY)


def make(settings: ModelSettings, env: Mapping[str, str], fetch: Fetch) -> AnthropicWire:
    """See `wire.Make`."""
    del fetch
    return AnthropicWire(settings, read_key(settings.api_key or KEY, env))
