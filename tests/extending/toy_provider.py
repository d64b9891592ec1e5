"""Toy's API as a provider: pairs of role and words go out, one JSON object comes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from interlace.config import ModelSettings
from interlace.engines.fields import KEPT, Fields, Mapped, Refused, check_fields, table
from interlace.engines.remote.failures import Complaint, read_complaint
from interlace.engines.remote.secret import Secret, read_key
from interlace.engines.remote.usage import Seen, checked_usage
from interlace.engines.remote.wire import JSON, Fetch, Outgoing
from interlace.engines.types import Delta, Embeddings, EmbedRequest, Event, FinishReason, GenerateRequest
from interlace.errors import EngineFailed, InvalidRequest

FIELDS: Fields = table(
    Refused("this model does not know it. Leave it out, or choose another model."),
    messages=KEPT,
    sampling__max_tokens=Mapped("as `most`"),
)
ENDS: Mapping[str, FinishReason] = {"done": "stop", "full": "length"}


class Said(msgspec.Struct):
    """Toy's answer."""

    words: str
    why: str
    read: int
    written: int


class ToyAnswer:
    """Reads one answer, which comes whole."""

    def __init__(self, request: GenerateRequest, prompt_tokens: int) -> None:
        self.progress, self.done, self.complete = 0, False, False
        self._seen = Seen(request, prompt_tokens)
        self._said: Said | None = None

    def take(self, payload: bytes) -> list[Event]:
        """The text, and its end."""
        try:
            self._said = said = msgspec.json.decode(payload, type=Said)
        except (msgspec.DecodeError, RecursionError):
            raise EngineFailed("The server behind this model sent what is no answer. Try again.") from None
        self.progress, self.done, self.complete = 1, True, True
        delta = Delta(text=said.words, tokens=said.written, finish_reason=ENDS.get(said.why, "stop"))
        self._seen.add(delta)
        return [delta]

    def end(self, *, told: bool) -> list[Event]:
        """The usage."""
        del told
        said = self._said
        read, written = (None, None) if said is None else (said.read, said.written)
        return [checked_usage(self._seen, prompt=read, completion=written)]


class ToyWire:
    """One model at Toy."""

    fields = FIELDS

    def __init__(self, settings: ModelSettings, key: Secret | None) -> None:
        self._settings, self._key = settings, key

    def check(self, request: GenerateRequest) -> None:
        """What the table refuses."""
        check_fields(request, self.fields, {})

    async def generate(self, request: GenerateRequest, *, ask_usage: bool) -> Outgoing:
        """Toy's body."""
        del ask_usage
        turns = [[message.role, message.text] for message in request.messages or ()]
        body: dict[str, Any] = {"model": self._settings.model, "turns": turns, "most": request.sampling.max_tokens}
        headers = {} if self._key is None else {"toy-key": self._key.reveal()}
        return Outgoing(f"{self._settings.base_url}/say", msgspec.json.encode(body), headers)

    async def embed(self, request: EmbedRequest) -> Outgoing:
        """Toy makes no embeddings."""
        raise InvalidRequest("This provider makes no embeddings.", param="model", code="unsupported_parameter")

    async def count(self, request: GenerateRequest) -> None:
        """Toy has no counter."""

    def read_count(self, body: bytes) -> int:
        """Never asked."""
        raise NotImplementedError

    def frames(self, content_type: str) -> None:
        """Answers come whole, as JSON."""
        if content_type != JSON:
            raise EngineFailed("The server behind this model did not send JSON. Try again.")

    def answer(self, request: GenerateRequest, prompt_tokens: int) -> ToyAnswer:
        """A reader of one answer."""
        return ToyAnswer(request, prompt_tokens)

    def embeddings(self, request: EmbedRequest, body: bytes, prompt_tokens: int) -> Embeddings:
        """Never asked."""
        raise NotImplementedError

    def complaint(self, value: object, headers: Mapping[str, str]) -> Complaint:
        """Errors look like OpenAI's."""
        return read_complaint(value)

    def hide(self, text: str) -> str:
        """Without the key."""
        return text if self._key is None else self._key.hidden_in(text)


def make(settings: ModelSettings, env: Mapping[str, str], fetch: Fetch) -> ToyWire:
    """See `wire.Make`."""
    return ToyWire(settings, read_key(settings.api_key or "${TOY_API_KEY}", env))
