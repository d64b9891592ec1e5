"""Taking turns: every contestant at every shape, round by round."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.figures import Rate


@dataclass(frozen=True, slots=True)
class Shape:
    """So many streams of so long prompts, with so many new tokens each. `phase` names the rate that is taken."""

    phase: str
    streams: int
    prompt_tokens: int
    new_tokens: int

    @property
    def label(self) -> str:
        """`8 streams`, with the prompt's length where it is not the usual one."""
        count = "1 stream" if self.streams == 1 else f"{self.streams} streams"
        return count if self.prompt_tokens == 40 else f"{count}, {self.prompt_tokens}-token prompts"

    def prompts(self, generator: random.Random, vocabulary: int) -> list[list[int]]:
        """Random token ids away from both ends of the vocabulary, where special tokens lie."""
        ids = range(100, vocabulary - 100)
        return [generator.choices(ids, k=self.prompt_tokens) for _ in range(self.streams)]


Measure = Callable[[str, Shape, list[list[int]]], float]


def take_turns(contestants: Sequence[str], shapes: Sequence[Shape], rounds: int, vocabulary: int,
               measure: Measure) -> Iterator[tuple[Shape, str, float]]:  # fmt: skip
    """Yield each measurement as it is made. Within a round all contestants run a shape one right after another, on the
    same prompts; each round starts with another contestant, so that none always follows the same one."""
    generator = random.Random(0)
    for turn in range(rounds):
        first = turn % len(contestants)
        order = [*contestants[first:], *contestants[:first]]
        for shape in shapes:
            prompts = shape.prompts(generator, vocabulary)
            for contestant in order:
                yield shape, contestant, measure(contestant, shape, prompts)


def gather(measured: Sequence[tuple[Shape, str, float]]) -> list[Rate]:
    """The values of each contestant and shape together, in the order of their first appearance (the first round's,
    in which contestants run in the order they were named)."""
    values: dict[tuple[str, str, str], list[float]] = {}
    for shape, contestant, value in measured:
        values.setdefault((shape.phase, shape.label, contestant), []).append(value)
    return [Rate(*key, tuple(given)) for key, given in values.items()]
