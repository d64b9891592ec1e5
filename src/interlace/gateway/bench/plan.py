"""What is asked: so many chats at once, with questions that nobody has asked before."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from interlace.ledger.prices import Price, most

WARM_TOKENS = 8  # of an answer before the clock runs: connections, caches of code and memory, nothing more
MOST_STREAMS = 1024

# A token each in the usual vocabularies, so that words are about as many as tokens.
_WORDS = (
    "river", "stone", "garden", "window", "bridge", "winter", "summer", "music", "letter", "paper", "silver",
    "market", "castle", "forest", "island", "mountain", "train", "station", "teacher", "doctor", "farmer", "soldier",
    "painter", "writer", "captain", "brother", "sister", "mother", "father", "friend", "morning", "evening", "shadow",
    "light", "water", "fire", "wind", "rain", "snow", "cloud", "bread", "apple", "coffee", "table", "chair", "door",
    "road", "street", "city", "village", "harbor", "ocean", "ship", "horse", "bird", "tiger", "lion", "wolf", "bear",
    "house", "tower", "wall", "field", "valley", "desert",
)  # fmt: skip
_ASK = "Write a very long story in which these words appear, and do not stop early:"


@dataclass(frozen=True, slots=True)
class Plan:
    """One measurement. Tokens are at most `tokens` for each answer, and about `prompt_tokens` for each question, of
    which the first `shared_prefix` are the same in all of them. `whole`: the server makes exactly `tokens`."""

    model: str
    streams: tuple[int, ...]
    tokens: int
    prompt_tokens: int
    shared_prefix: int
    rounds: int
    seconds: float | None
    timeout: float
    whole: bool

    @property
    def requests(self) -> int:
        """How many chats there are at most, warm-up included."""
        return sum(streams * (self.rounds + 1) for streams in self.streams)

    def most_nanos(self, price: Price) -> int:
        """The most that all of it can cost. No tokenizer makes more tokens than there are bytes; what a template or a
        provider adds to a question is allowed for."""
        longest = max(map(len, _WORDS)) + 1
        read = len(_ASK) + longest * self.prompt_tokens + 512
        warm = most(price, read, min(self.tokens, WARM_TOKENS))
        return sum(streams * (warm + self.rounds * most(price, read, self.tokens)) for streams in self.streams)

    def body(self, question: str, tokens: int) -> dict[str, Any]:
        """What is sent for one chat."""
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"ignore_eos": True} if self.whole else {}),
        }


class Questions:
    """An endless supply, each unlike any other: a cache of prompts, here or at a provider, helps none of them beyond
    the part that is shared on purpose."""

    def __init__(self, plan: Plan) -> None:
        self._random = random.SystemRandom()  # another run, too, must ask what nobody asked
        asked = len(_ASK.split())
        words = max(plan.prompt_tokens - asked, 1)
        shared = min(plan.shared_prefix, words)
        self._shared = " ".join(self._random.choices(_WORDS, k=shared))
        self._own = words - shared

    def next(self) -> str:
        """A question."""
        own = " ".join(self._random.choices(_WORDS, k=self._own))
        return " ".join(part for part in (self._shared, own, _ASK) if part)


def as_json(plan: Plan) -> Mapping[str, Any]:
    """The settings of a measurement, for programs."""
    return {
        "streams": plan.streams,
        "tokens": plan.tokens,
        "prompt_tokens": plan.prompt_tokens,
        "shared_prefix": plan.shared_prefix,
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "timeout": plan.timeout,
        "warm_up_tokens": min(plan.tokens, WARM_TOKENS),
    }
