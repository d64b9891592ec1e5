"""What the scheduler moves about: a sequence being computed, and a slice of it in one step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # they are made of each other
    from interlace.engines.local.fairness import Group


@dataclass(eq=False)
class Sequence:
    """One continuation being computed: prompt and output in `tokens`, the first `computed` of them in the cache.

    `tenant` and `adapter` say whose it is and by which weights it is computed: blocks of the cache are shared within
    both only. Adapters of one name that differ in their weights must differ here.
    """

    tokens: list[int]
    owner: Any = None  # whoever queued it; the scheduler does not look
    slice_limit: int | None = None  # at most so many prompt tokens in one step, of all that have a limit together
    tenant: str = ""
    adapter: str = ""
    priority: int = 0  # the greater goes first
    far: bool = False  # longer than its model's border, and so computed in another way
    computed: int = 0
    found: int = 0  # of `computed`, so many were in the cache when it was admitted last
    gave_way: int = 0  # how often
    blocks: list[int] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)  # of its full blocks, as far as they were needed
    group: Group | None = None  # its place in the queue, while it waits or runs

    @property
    def remaining(self) -> int:
        """Tokens not yet in the cache: 1 while decoding, more before."""
        return len(self.tokens) - self.computed

    @property
    def way(self) -> str:
        """By which weights and how it is computed: what lies in the cache is of use to none that differs in it."""
        return f"{self.adapter}\0far" if self.far else self.adapter

    @property
    def reads_anew(self) -> bool:
        """Whether it takes nothing from the cache: who limits its slices wants the logits of every position."""
        return self.slice_limit is not None


@dataclass(frozen=True, slots=True)
class Slice:
    """`count` tokens of `sequence` to compute in this step."""

    sequence: Sequence
    count: int

    @property
    def completes(self) -> bool:
        """Whether the step reaches the sequence's last token, so that a next one can be chosen."""
        return self.count == self.sequence.remaining
