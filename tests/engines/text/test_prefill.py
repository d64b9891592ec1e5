"""A turn left open: the prompt ends where the assistant's last message ends, whatever the template writes after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from interlace.engines.local.template import ChatTemplate
from interlace.engines.local.tokenizer import Tokenizer
from interlace.engines.types import Message, TextPart, ToolCall
from interlace.errors import InvalidRequest
from tests.engines.text.test_template import _CHATML_TOOLS, _FORGED, _LLAMA3, _MISTRAL, _TOOL, _load

SOURCES = {"chatml": _CHATML_TOOLS, "llama3": _LLAMA3, "mistral": _MISTRAL}
HELLO = Message(role="user", content="Hi there")


def begun(content: Any = "It is") -> list[Message]:
    """A conversation whose answer has begun."""
    return [HELLO, Message(role="assistant", content=content)]


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("beginning", ["It is", "Hi there", "{", "a <b> & ü \U0001f600"])
def test_an_open_turn_equals_transformers(tmp_path: Path, smollm2: Tokenizer, name: str, beginning: str) -> None:
    """The same text as `continue_final_message` gives, even where the user said the very words before."""
    from transformers.utils.chat_template_utils import render_jinja_template

    chat = [{"role": "user", "content": "Hi there"}, {"role": "assistant", "content": beginning}]
    (reference,), _ = render_jinja_template(
        [chat], chat_template=SOURCES[name], continue_final_message=True, **smollm2.named_tokens
    )
    template = _load(tmp_path, smollm2, SOURCES[name])
    assert template.render(begun(beginning), prefill=True).text == reference


def test_the_model_reads_nothing_after_the_beginning(smollm2: Tokenizer, smollm2_template: ChatTemplate) -> None:
    """No end of the turn, no new turn: the last tokens are those of the text, white space at its end and all."""
    rendered = smollm2_template.render(begun("It is  "), prefill=True)
    assert rendered.text.endswith("<|im_start|>assistant\nIt is  ")
    assert smollm2.encode_pieces(rendered.pieces) == smollm2.encode(rendered.text, special=True)


def test_a_beginning_cannot_forge_control_tokens(smollm2: Tokenizer, smollm2_template: ChatTemplate) -> None:
    """Nor can one that ends within a control token, or brings the mark that we cut at."""
    for content in (_FORGED, f"{_FORGED}<|im_", "a\ufdd2b" + _FORGED):
        rendered = smollm2_template.render(begun(content), prefill=True)
        ids = smollm2.encode_pieces(rendered.pieces)
        plain = smollm2.encode_pieces(smollm2_template.render(begun("x"), prefill=True).pieces)
        special = smollm2.special_ids
        assert [token for token in ids if token in special] == [token for token in plain if token in special]
        assert rendered.text.endswith(content.replace("\ufdd2", ""))


def test_a_beginning_in_parts_and_beside_tools(smollm2_template: ChatTemplate) -> None:
    """Parts are one text; definitions of tools stand in the system's message as ever."""
    rendered = smollm2_template.render(begun((TextPart("It"), TextPart("is"))), [_TOOL], prefill=True).text
    assert "<tools>" in rendered
    assert rendered.endswith("assistant\nIt\nis")


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [HELLO],
        [HELLO, Message(role="assistant", content="x", tool_calls=(ToolCall("1", "get", "{}"),))],
    ],
)
def test_only_the_assistants_words_are_a_beginning(smollm2_template: ChatTemplate, messages: list[Message]) -> None:
    """Anything else at the end is refused, naming the field."""
    with pytest.raises(InvalidRequest) as caught:
        smollm2_template.render(messages, prefill=True)
    assert caught.value.param == "messages"


def test_a_template_that_shows_no_last_message_is_no_use(tmp_path: Path, smollm2: Tokenizer) -> None:
    """A clean refusal, rather than a prompt that has lost the beginning."""
    for source in ("{{ messages[0].content }}", "{{ messages | tojson(ensure_ascii=true) }}"):
        template = _load(tmp_path, smollm2, source)
        with pytest.raises(InvalidRequest, match="cannot leave a turn open"):
            template.render(begun(), prefill=True)
