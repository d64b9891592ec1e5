"""Conversations as the base is asked them: token ids, and which of them are the answers'.

The base's own chat template makes the text, as when it is served, and the answers are where the text grows from the
turns before one to the turns with it. So no template has to mark them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

NO_LOSS = -100  # PyTorch's mark of a token that nothing is learnt from

Turn = dict[str, str]


class CannotRender(ValueError):
    """Why a conversation cannot be learnt from, in words."""


class Renders(Protocol):
    """The part of a tokenizer of transformers that is used here."""

    all_special_tokens: list[str]

    def apply_chat_template(self, conversation: Sequence[Turn], **options: Any) -> Any:
        """The conversation as text."""
        ...

    def __call__(self, text: str, **options: Any) -> Any:
        """Token ids, and where each lies in the text."""
        ...


@dataclass(frozen=True, slots=True)
class Row:
    """One example in tokens; `labels` are the ids again, `NO_LOSS` outside of answers. Its first token has no label:
    nothing is there to guess it from."""

    input_ids: list[int]
    labels: list[int]

    @property
    def learnt(self) -> int:
        """How many tokens are learnt from."""
        return sum(label != NO_LOSS for label in self.labels)


def row_of(messages: Sequence[Turn], tokenizer: Renders, control: frozenset[str]) -> Row:
    """One conversation in tokens. Raises `CannotRender`, saying which field and the mend."""
    for number, turn in enumerate(messages):
        if found := next((token for token in control if token in turn["content"]), None):
            raise CannotRender(
                f"messages[{number}].content: has {found!r} in it, which steers the base. Write it in other words."
            )
    text, spans = _spans(messages, tokenizer)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, places = list(encoded["input_ids"]), encoded["offset_mapping"]
    learnt = [any(start <= first and last <= end for start, end in spans) for first, last in places]
    labels = [each if wanted else NO_LOSS for each, wanted in zip(ids, learnt, strict=True)]
    if labels:
        labels[0] = NO_LOSS
    if all(label == NO_LOSS for label in labels):
        raise CannotRender("messages: the chat template of the base leaves no token of an answer. Give another base.")
    return Row(ids, labels)


def _spans(messages: Sequence[Turn], tokenizer: Renders) -> tuple[str, list[tuple[int, int]]]:
    """The whole text, and from where to where in it the answers go, with the mark that ends each."""
    whole = _render(messages, tokenizer, ask=False)
    spans = []
    for number, turn in enumerate(messages):
        if turn["role"] != "assistant":
            continue
        before = _render(messages[:number], tokenizer, ask=True)
        after = whole if number + 1 == len(messages) else _render(messages[: number + 1], tokenizer, ask=False)
        if not after.startswith(before) or not whole.startswith(after):
            raise CannotRender(
                f"messages[{number}]: the chat template of the base writes earlier turns otherwise once later ones are "
                "there, so that what is learnt would not be what is asked. Give one question and one answer a row."
            )
        spans.append((len(before), len(before) + len(after[len(before) :].rstrip())))
    return whole, spans


def _render(messages: Sequence[Turn], tokenizer: Renders, *, ask: bool) -> str:
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask))
    except Exception as error:  # a template may raise anything; it comes with the base
        raise CannotRender(f"messages: the chat template of the base refuses them: {error}") from error
