"""Carries what a worker's teller wants done to the coordinator, and the answers back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from interlace.errors import Conflict, InterlaceError
from interlace.gateway.processes.link import Link
from interlace.gateway.processes.messages import Recall, read_body
from interlace.ledger import LinkedRegistry
from interlace.ledger.book import AccountKey, Accounts
from interlace.ledger.escrow import Answer, Ask, Effect, GiveBack, Teller

TICK_SECONDS = 0.03
AGAIN_SECONDS = 0.1  # from one try to hear from a bank in trouble to the next


@dataclass(eq=False)
class AtBank:
    """The teller of this process, and its way to the bank. `ended` is told when the bank has closed this worker."""

    link: Link
    registry: LinkedRegistry
    ended: Callable[[], None] = lambda: None
    _due: bool = False
    _renewing: bool = False
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.teller = Teller(self.registry.budget, self._soon)

    async def taken(self, accounts: Accounts) -> dict[AccountKey, tuple[int, int]]:
        """What is spent of each account, and what all workers hold of it."""
        found = await self.link.ask("taken", accounts, list[tuple[AccountKey, int, int]])
        return {account: (spent, held) for account, spent, held in found}

    def reserved(self, body: msgspec.Raw) -> list[int]:
        """What requests that run here hold of each account."""
        there = (self.teller.accounts.get(account) for account in read_body(body, Accounts))
        return [one.reserved if one else 0 for one in there]

    def recalled(self, recall: Recall) -> None:
        """Others wait for what may be free here."""
        self.teller.recalled(dict(recall.wanted))

    async def tick(self) -> None:
        """Ask again for what was not there, until cancelled."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.teller.tick()

    def _soon(self) -> None:
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._act)

    def _act(self) -> None:
        self._due = False
        for effect in self.teller.effects():
            task = asyncio.create_task(self._carry(effect))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(self, effect: Effect) -> None:
        try:
            if isinstance(effect, Ask):
                self.teller.answered(await self.link.ask("ask", effect, Answer))
            elif isinstance(effect, GiveBack):
                await self.link.ask("give_back", effect, None)
                self.teller.acknowledged(effect.totals)
            else:
                await self.link.ask("drop", effect, None)
        except Conflict:
            self.ended()
        except InterlaceError:  # it may have been done all the same
            await self._renew()

    async def _renew(self) -> None:
        """Hear from the bank what it has granted: an answer was lost, or never came."""
        if self._renewing:
            return None
        self._renewing = True
        try:
            while True:
                try:
                    holdings = await self.link.ask("holdings", None, list[tuple[AccountKey, int]])
                    break
                except Conflict:
                    return self.ended()
                except InterlaceError:
                    await asyncio.sleep(AGAIN_SECONDS)
        finally:
            self._renewing = False
        return self.teller.reconnected(dict(holdings))
