"""A make-believe model over a paged cache: it remembers what was written where, and answers by what it reads."""

from __future__ import annotations

from zlib import crc32

from interlace.engines.local.graph import BLOCK
from interlace.engines.local.scheduler import Scheduler
from interlace.engines.local.sequences import Sequence, Slice

ALPHABET = 4  # so few tokens that prompts often begin alike

Whose = tuple[str, str]


def next_token(whose: Whose, tokens: list[int]) -> int:
    """What the model says after these tokens, for an organisation and in a way to compute them."""
    return crc32(repr((whose, tokens)).encode()) % ALPHABET


class PagedModel:
    """The cells of all blocks: whose token was written there last, and which."""

    def __init__(self, blocks: int) -> None:
        self.cells: list[list[tuple[Whose, int] | None]] = [[None] * BLOCK for _ in range(blocks)]

    def forward(self, plan: list[Slice]) -> dict[Sequence, int]:
        """Write every slice, then read every sequence that is computed to its end; its next token."""
        for piece in plan:
            sequence = piece.sequence
            for position in range(sequence.computed, sequence.computed + piece.count):
                block = sequence.blocks[position // BLOCK]
                self.cells[block][position % BLOCK] = (_whose(sequence), sequence.tokens[position])
        return {piece.sequence: self._next(piece.sequence) for piece in plan if piece.completes}

    def _next(self, sequence: Sequence) -> int:
        whose, read = _whose(sequence), []
        for position in range(len(sequence.tokens)):
            cell = self.cells[sequence.blocks[position // BLOCK]][position % BLOCK]
            assert cell is not None, "a block is read that nobody wrote"
            owner, token = cell
            assert owner == whose, "a block is read that was written for another organisation or in another way"
            read.append(token)
        return next_token(whose, read)


def step(scheduler: Scheduler, model: PagedModel) -> tuple[list[Slice], list[Sequence]]:
    """One step of an engine: the plan, and the sequences that got a token."""
    plan = scheduler.schedule()
    told = model.forward(plan)
    scheduler.computed(plan)
    for sequence, token in told.items():
        sequence.tokens.append(token)
    return plan, list(told)


def _whose(sequence: Sequence) -> Whose:
    return sequence.tenant, sequence.way
