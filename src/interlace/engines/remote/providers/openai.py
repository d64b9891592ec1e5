"""OpenAI's chat and text completions and embeddings, as OpenAI and very many other servers speak them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgspec

from interlace.config import ModelSettings
from interlace.engines.fields import Fields, check_fields
from interlace.engines.remote.counting import most_prompt_tokens
from interlace.engines.remote.failures import Complaint, read_complaint
from interlace.engines.remote.providers.openai_answer import OpenAIAnswer
from interlace.engines.remote.providers.openai_embeddings import read_embeddings
from interlace.engines.remote.providers.openai_fields import fields_of_openai, fields_of_responses
from interlace.engines.remote.providers.openai_request import EMBEDDINGS, embed_body, generate_body, path_of
from interlace.engines.remote.providers.openai_responses_answer import ResponsesAnswer
from interlace.engines.remote.providers.openai_responses_request import RESPONSES, response_body
from interlace.engines.remote.secret import Secret, read_key
from interlace.engines.remote.sse import EventReader
from interlace.engines.remote.wire import EVENT_STREAM, JSON, Fetch, Outgoing
from interlace.engines.types import Embeddings, EmbedRequest, GenerateRequest
from interlace.errors import EngineFailed

MOST_CHECKED = 64
MOST_CHECKED_BYTES = 100_000
"""So many bodies, no longer than that, of requests that were checked are kept for when they are sent, a moment on."""


class OpenAIWire:
    """One model at one server, by chat completions or, with `api: responses`, by the Responses API. Subclasses change
    where requests go and how they are signed."""

    def __init__(self, settings: ModelSettings, key: Secret | None) -> None:
        self.settings = settings
        self._responses = settings.api == "responses"
        self.fields: Fields = fields_of_responses(settings) if self._responses else fields_of_openai(settings)
        self._key = key
        self._checked: dict[int, tuple[GenerateRequest, dict[str, Any]]] = {}

    def check(self, request: GenerateRequest) -> None:
        """Raises `InvalidRequest` for what the server does not know."""
        body = self._body(request, ask_usage=True)
        check_fields(request, self.fields, {})
        if len(self._checked) >= MOST_CHECKED:  # those were refused after all, or wait for long
            self._checked.clear()
        if most_prompt_tokens(request) <= MOST_CHECKED_BYTES:
            self._checked[id(request)] = request, body

    async def generate(self, request: GenerateRequest, *, ask_usage: bool) -> Outgoing:
        """A conversation goes to the chat endpoint, a prompt to the older one."""
        path = RESPONSES if self._responses else path_of(request)
        checked, body = self._checked.pop(id(request), (None, {}))
        if checked is not request or not ask_usage:
            body = self._body(request, ask_usage=ask_usage)
        return await self.outgoing(path, body, EVENT_STREAM if self.settings.stream else JSON)

    def _body(self, request: GenerateRequest, *, ask_usage: bool) -> dict[str, Any]:
        if self._responses:
            return response_body(request, self.settings)
        return generate_body(request, self.settings, ask_usage=ask_usage)

    async def embed(self, request: EmbedRequest) -> Outgoing:
        """All inputs in one call."""
        return await self.outgoing(EMBEDDINGS, embed_body(request, self.settings), JSON)

    async def count(self, request: GenerateRequest) -> Outgoing | None:
        """There is no counter."""
        del request
        return None

    def read_count(self, body: bytes) -> int:
        """Never asked."""
        raise NotImplementedError

    def frames(self, content_type: str) -> EventReader | None:
        """Server-sent events, or JSON from a server that cannot stream."""
        if content_type == EVENT_STREAM:
            return EventReader()
        if content_type == JSON:
            return None
        raise EngineFailed("The server behind this model sent neither events nor JSON. Try again.")

    def answer(self, request: GenerateRequest, prompt_tokens: int) -> OpenAIAnswer | ResponsesAnswer:
        """A reader of one answer."""
        if self._responses:
            return ResponsesAnswer(request, prompt_tokens)
        return OpenAIAnswer(request, prompt_tokens)

    def embeddings(self, request: EmbedRequest, body: bytes, prompt_tokens: int) -> Embeddings:
        """Rows as base64 or numbers."""
        return read_embeddings(body, len(request.ids) or len(request.texts), self.settings.dimensions, prompt_tokens)

    def complaint(self, value: object, headers: Mapping[str, str]) -> Complaint:
        """OpenAI's error object, and what is like it; `retry-after-ms` is finer than Retry-After."""
        complaint = read_complaint(value)
        if (soon := headers.get("retry-after-ms", "")).isdecimal():
            complaint = dataclasses.replace(complaint, again=int(soon[:9]) / 1000)
        return complaint

    def hide(self, text: str) -> str:
        """Without the key."""
        return text if self._key is None else self._key.hidden_in(text)

    async def outgoing(self, path: str, body: Mapping[str, object], accept: str) -> Outgoing:
        """A body on its way."""
        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key.reveal()}"}
        return Outgoing(self.settings.base_url + path, msgspec.json.encode(body), headers, accept)


def make(settings: ModelSettings, env: Mapping[str, str], fetch: Fetch) -> OpenAIWire:
    """See `wire.Make`."""
    del fetch
    return OpenAIWire(settings, read_key(settings.api_key, env))
