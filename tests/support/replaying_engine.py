"""A scripted engine that says exactly the deltas it is given, with the usage it is given: thoughts, calls, refusals."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from interlace.engines.fields import ALL_KEPT, Fields
from interlace.engines.types import Delta, Event, GenerateRequest, Started, Usage
from tests.support.scripted_engine import ScriptedEngine


@dataclass
class ReplayingEngine(ScriptedEngine):
    """Answers every request with `deltas` and `usage`, and takes every field there is."""

    deltas: tuple[Delta, ...] = ()
    usage: Usage = field(default_factory=lambda: Usage(10, 5))
    fates: Fields = field(default_factory=lambda: ALL_KEPT)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Started, the deltas, the usage."""
        self.seen.append(request)
        yield Started(self.usage.prompt_tokens, self.usage.cached_tokens)
        for delta in self.deltas:
            yield delta
        yield self.usage
