"""The blocks of a paged cache: free, held by sequences, or kept for whoever begins with the same tokens.

A full block has a name: a keyed hash of the tokens in it and of the name of the block before it, back to a root made
of organisation and adapter. So equal names mean equal prefixes of one organisation by the same weights, and what lies
in a named block never changes: sequences share it without a copy. The key is drawn anew in each process; nobody
outside can make a prompt whose name is that of another.
"""

from __future__ import annotations

import secrets
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from interlace.engines.local.graph import BLOCK


def blocks_for(tokens: int) -> int:
    """How many blocks so many tokens fill, the last one perhaps in part."""
    return -(-tokens // BLOCK)


class Names:
    """Makes the names of full blocks."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(blake2b.MAX_KEY_SIZE)

    def extend(self, names: list[bytes], tokens: Sequence[int], full: int, *, tenant: str, adapter: str) -> None:
        """Continue `names`, those of the first blocks of `tokens`, until there are `full` of them."""
        name = names[-1] if names else self._root(tenant, adapter)
        for begin in range(len(names) * BLOCK, full * BLOCK, BLOCK):
            piece = array("q", tokens[begin : begin + BLOCK]).tobytes()
            name = blake2b(name + piece, digest_size=32, key=self._key, person=b"block").digest()
            names.append(name)

    def _root(self, tenant: str, adapter: str) -> bytes:
        owner = tenant.encode()
        whole = len(owner).to_bytes(8, "big") + owner + adapter.encode()  # no two pairs are written the same
        return blake2b(whole, digest_size=32, key=self._key, person=b"root").digest()


class Blocks:
    """`total` blocks. One that nobody holds stays findable by its name until its place is needed, the one held
    longest ago first."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = list(range(total - 1, -1, -1))  # used as a stack: blocks just freed are warm
        self._holders = [0] * total
        self._names: dict[int, bytes] = {}
        self._by_name: dict[bytes, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()  # named, held by nobody

    @property
    def available(self) -> int:
        """Blocks that nobody holds, those that are kept among them."""
        return len(self._free) + len(self._kept)

    @property
    def kept(self) -> int:
        """Blocks that nobody holds and that may yet be found."""
        return len(self._kept)

    def take(self, count: int) -> list[int]:
        """Blocks to write to, held once; there must be so many available."""
        taken = []
        for _ in range(count):
            block = self._free.pop() if self._free else self._forget_oldest()
            self._holders[block] = 1
            taken.append(block)
        return taken

    def find(self, names: Iterable[bytes]) -> list[int]:
        """The blocks of the longest beginning of `names` that is there."""
        found = []
        for name in names:
            if (block := self._by_name.get(name)) is None:
                break
            found.append(block)
        return found

    def hold(self, blocks: Iterable[int]) -> None:
        """Hold blocks that were found."""
        for block in blocks:
            if self._holders[block] == 0:
                del self._kept[block]
            self._holders[block] += 1

    def unheld(self, blocks: Iterable[int]) -> int:
        """How many of them nobody holds."""
        return sum(self._holders[block] == 0 for block in blocks)

    def release(self, blocks: Sequence[int]) -> None:
        """Hold these no more, the beginnings of prefixes last: without them what follows is never found."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if block in self._names:
                    self._kept[block] = None
                else:
                    self._free.append(block)

    def name(self, block: int, name: bytes) -> None:
        """Let a full block, computed and held, be found; where another of that name is there, that one stays."""
        if self._by_name.setdefault(name, block) == block:
            self._names[block] = name

    def holders(self, block: int) -> int:
        """How many sequences hold it."""
        return self._holders[block]

    def _forget_oldest(self) -> int:
        block, _ = self._kept.popitem(last=False)
        del self._by_name[self._names.pop(block)]
        return block
