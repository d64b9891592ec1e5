"""The dialects callers may speak, in one table: where, what reads the body, and what becomes of each field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import msgspec

from interlace.gateway.anthropic_messages_body import CountBody, MessagesBody
from interlace.gateway.anthropic_tables import COUNT, MESSAGES
from interlace.gateway.openai_chat_body import ChatBody
from interlace.gateway.openai_completions import CompletionBody
from interlace.gateway.openai_embeddings import EmbeddingBody
from interlace.gateway.openai_tables import CHAT, COMPLETIONS, EMBEDDINGS
from interlace.gateway.responses_body import ResponsesBody
from interlace.gateway.responses_table import RESPONSES
from interlace.gateway.translation import Table


@dataclass(frozen=True, slots=True)
class Spoken:
    """One dialect: its title for people, the path it is spoken at, and both sides of its body."""

    title: str
    path: str
    body: type[msgspec.Struct]
    table: Table


DIALECTS: Mapping[str, Spoken] = MappingProxyType(
    {
        "openai.chat": Spoken("OpenAI's chat completions", "/v1/chat/completions", ChatBody, CHAT),
        "openai.responses": Spoken("OpenAI's responses", "/v1/responses", ResponsesBody, RESPONSES),
        "openai.completions": Spoken("OpenAI's completions", "/v1/completions", CompletionBody, COMPLETIONS),
        "openai.embeddings": Spoken("OpenAI's embeddings", "/v1/embeddings", EmbeddingBody, EMBEDDINGS),
        "anthropic.messages": Spoken("Anthropic's messages", "/v1/messages", MessagesBody, MESSAGES),
        "anthropic.count_tokens": Spoken("Anthropic's count of tokens", "/v1/messages/count_tokens", CountBody, COUNT),
    }
)
