"""The room, opened once over an open ledger."""

from __future__ import annotations

from collections.abc import Collection

from interlace.deposits.batches import Batches
from interlace.deposits.files import Files
from interlace.deposits.responses import Responses
from interlace.deposits.shelf import Shelf
from interlace.ledger import Registry


class Deposits:
    """What callers left here. An erasure of a project erases it too."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._shelf = Shelf(registry)
        self.files = Files(self._shelf)
        self.batches = Batches(self._shelf, self.files)
        self.responses = Responses(self._shelf)
        registry.also_erase.append(self.erase)

    def tidy(self, living: Collection[str] = ()) -> None:
        """Remove what a crash left; others may write meanwhile. `living`: processes that run responses still."""
        self._shelf.sweep()
        self.batches.forget_results()
        self.responses.fail_unfinished(living)

    def expire(self) -> None:
        """Delete what is past its time."""
        self.files.expire()
        self.responses.expire()

    def erase(self, project_id: str) -> None:
        """Delete everything that a project left here."""
        self.batches.erase(project_id)
        self.responses.erase(project_id)
        self.files.erase(project_id)
