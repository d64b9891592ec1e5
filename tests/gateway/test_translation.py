"""The tables of what becomes of each field are whole: against the structs that read bodies, and against the engines."""

from __future__ import annotations

import msgspec
import pytest

from interlace.engines.fields import NAMES
from interlace.gateway.anthropic_messages_body import CountBody, MessagesBody
from interlace.gateway.anthropic_tables import COUNT, MESSAGES
from interlace.gateway.openai_chat_body import ChatBody
from interlace.gateway.openai_completions import CompletionBody
from interlace.gateway.openai_embeddings import EmbeddingBody
from interlace.gateway.openai_tables import CHAT, COMPLETIONS, EMBEDDINGS
from interlace.gateway.responses_body import ResponsesBody
from interlace.gateway.responses_table import RESPONSES
from interlace.gateway.translation import Carried, Table, paths_of

DIALECTS: dict[str, tuple[type[msgspec.Struct], Table]] = {
    "openai.chat": (ChatBody, CHAT),
    "openai.completions": (CompletionBody, COMPLETIONS),
    "openai.embeddings": (EmbeddingBody, EMBEDDINGS),
    "anthropic.messages": (MessagesBody, MESSAGES),
    "anthropic.count_tokens": (CountBody, COUNT),
    "openai.responses": (ResponsesBody, RESPONSES),
}

SEVERAL_SHAPES = {
    "openai.chat": {"messages[].role", "response_format.type", "tool_choice"},
    "anthropic.messages": {"messages[].role", "tool_choice.type", "thinking.type"},
    "anthropic.count_tokens": {"messages[].role", "tool_choice.type", "thinking.type"},
    "openai.responses": {"input", "input[].type", "text.format", "tools[].type", "tool_choice"},
}
"""Paths that are tags of unions, or another shape of a path that has fields: no struct has them as fields."""


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_field_of_a_body_has_its_place(dialect: str) -> None:
    """A field that is read and not in the table would be lost without anybody having said so."""
    body, table = DIALECTS[dialect]
    assert set(table) - SEVERAL_SHAPES.get(dialect, set()) == paths_of(body)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_is_carried_has_a_name_that_engines_know(dialect: str) -> None:
    """A slip in a table would let a refusal go by the wrong name."""
    for place in DIALECTS[dialect][1].values():
        if isinstance(place, Carried):
            assert set(place.names) <= set(NAMES)
