"""The dialects callers may speak, in one table: endpoints, batches, the shapes of errors, the OpenAPI document and the
page of translations come from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import msgspec

from interlace.gateway.anthropic_count import TokenCount
from interlace.gateway.anthropic_messages import parse_messages, with_betas
from interlace.gateway.anthropic_messages_answer import MessageBody
from interlace.gateway.anthropic_messages_body import CountBody, MessagesBody
from interlace.gateway.anthropic_tables import COUNT, MESSAGES
from interlace.gateway.openai_chat import parse_chat
from interlace.gateway.openai_chat_answer import ChatCompletion
from interlace.gateway.openai_chat_body import ChatBody
from interlace.gateway.openai_completions import CompletionBody, parse_completion
from interlace.gateway.openai_completions_answer import Completion
from interlace.gateway.openai_embeddings import EmbeddingBody, EmbeddingList, parse_embedding
from interlace.gateway.openai_tables import CHAT, COMPLETIONS, EMBEDDINGS
from interlace.gateway.rendering import Dialect, Heed, unheeded
from interlace.gateway.responses_answer import Response
from interlace.gateway.responses_body import ResponsesBody
from interlace.gateway.responses_table import RESPONSES
from interlace.gateway.scoring import (
    CLASSIFY,
    RERANK,
    ClassificationList,
    ClassifyBody,
    RerankBody,
    RerankList,
    parse_classify,
    parse_rerank,
)
from interlace.gateway.styles import ANTHROPIC, OPENAI, Style
from interlace.gateway.translation import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """One dialect. `title` and `about` are for people; `name` is what usage events, logs and metrics call it.

    `body` and `answer` are both sides of it, `table` says what becomes of each field, `parse` reads a body and gives
    whoever renders the answer. Without `parse` it has an endpoint of its own in `app`, as it does more than answer.
    `streams`: an answer may come as events. `style` tells its errors and limits. `heed` adds what it says in headers.
    """

    title: str
    about: str
    name: str
    path: str
    body: type[msgspec.Struct]
    answer: type[msgspec.Struct]
    table: Table
    parse: Dialect | None = None
    streams: bool = True
    style: Style = OPENAI
    heed: Heed = unheeded


DIALECTS: Mapping[str, Spoken] = MappingProxyType(
    {
        "openai.chat": Spoken(
            title="OpenAI's chat completions",
            about="Continue a conversation.",
            name="chat",
            path="/v1/chat/completions",
            body=ChatBody,
            answer=ChatCompletion,
            table=CHAT,
            parse=parse_chat,
        ),
        "openai.responses": Spoken(
            title="OpenAI's responses",
            about="Answer, and keep the answer.",
            name="responses",
            path="/v1/responses",
            body=ResponsesBody,
            answer=Response,
            table=RESPONSES,
        ),
        "openai.completions": Spoken(
            title="OpenAI's completions",
            about="Continue one or more prompts.",
            name="completions",
            path="/v1/completions",
            body=CompletionBody,
            answer=Completion,
            table=COMPLETIONS,
            parse=parse_completion,
        ),
        "openai.embeddings": Spoken(
            title="OpenAI's embeddings",
            about="Embed texts.",
            name="embeddings",
            path="/v1/embeddings",
            body=EmbeddingBody,
            answer=EmbeddingList,
            table=EMBEDDINGS,
            parse=parse_embedding,
            streams=False,
        ),
        "jina.rerank": Spoken(
            title="Jina's and Cohere's rerank",
            about="Order documents by how well they answer a query.",
            name="rerank",
            path="/v1/rerank",
            body=RerankBody,
            answer=RerankList,
            table=RERANK,
            parse=parse_rerank,
            streams=False,
        ),
        "vllm.classify": Spoken(
            title="vLLM's classify",
            about="Classify texts.",
            name="classify",
            path="/v1/classify",
            body=ClassifyBody,
            answer=ClassificationList,
            table=CLASSIFY,
            parse=parse_classify,
            streams=False,
        ),
        "anthropic.messages": Spoken(
            title="Anthropic's messages",
            about="Continue a conversation, as Anthropic's API does.",
            name="messages",
            path="/v1/messages",
            body=MessagesBody,
            answer=MessageBody,
            table=MESSAGES,
            parse=parse_messages,
            style=ANTHROPIC,
            heed=with_betas,
        ),
        "anthropic.count_tokens": Spoken(
            title="Anthropic's count of tokens",
            about="Count a message's input.",
            name="count_tokens",
            path="/v1/messages/count_tokens",
            body=CountBody,
            answer=TokenCount,
            table=COUNT,
            streams=False,
            style=ANTHROPIC,
        ),
    }
)

PARSED: Mapping[str, tuple[Spoken, Dialect]] = MappingProxyType(
    {spoken.path: (spoken, spoken.parse) for spoken in DIALECTS.values() if spoken.parse is not None}
)
"""Path → a dialect that only answers, and its parser."""


def style_of(path: str, *, anthropic_version: bool) -> Style:
    """The style of a path and those below it; `/v1/models` is in both dialects, and Anthropic's for whoever sends
    `anthropic-version`."""
    if path == "/v1/models" or path.startswith("/v1/models/"):
        return ANTHROPIC if anthropic_version else OPENAI
    for spoken in DIALECTS.values():
        if path == spoken.path or path.startswith(f"{spoken.path}/"):
            return spoken.style
    return OPENAI
