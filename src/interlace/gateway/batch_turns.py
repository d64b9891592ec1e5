"""Whose line of a batch begins next: projects in turn, and within a project whoever came first.

So one that leaves a hundred batches is served no sooner than one that leaves a single line. Nobody looks again and
again for a place: who waits costs nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Turns:
    """Who waits for a place. `joined` hears that somebody does; `lost` is told of a place that was given to somebody
    who went away."""

    joined: Callable[[], None]
    lost: Callable[[], None]
    _waiting: dict[str, deque[asyncio.Future[None]]] = field(default_factory=dict)  # by project; the first is next

    async def wait(self, project_id: str) -> None:
        """Return with a place."""
        turn = asyncio.get_running_loop().create_future()
        turns = self._waiting.setdefault(project_id, deque())
        turns.append(turn)
        self.joined()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.lost()
            else:  # whoever comes and goes leaves nothing behind
                self._leave(project_id, turn)
            raise

    def _leave(self, project_id: str, turn: asyncio.Future[None]) -> None:
        turns = self._waiting.get(project_id, deque())
        if turn in turns:
            turns.remove(turn)
            if not turns:
                del self._waiting[project_id]

    def give(self) -> bool:
        """Give a place to who is next; False where nobody waits."""
        while self._waiting:
            project_id = next(iter(self._waiting))
            turns = self._waiting.pop(project_id)
            turn = turns.popleft()
            if turns:
                self._waiting[project_id] = turns  # behind all others
            if not turn.done():  # done: its line was just cancelled
                turn.set_result(None)
                return True
        return False
