"""What an engine host drives: the protocol of engines that compute on this machine."""

from __future__ import annotations

from typing import Any, Protocol

from interlace.engines.types import Capabilities, EmbedRequest, GenerateRequest, Health, Outcome


class Core(Protocol):
    """A local engine as its host drives it: plain calls, no event loop.

    `prepare` and `count` may run on other threads while `step` runs; everything else is called from the stepping
    thread only.
    """

    def prepare(self, request: GenerateRequest | EmbedRequest) -> Any:
        """Tokenise, render and compile one request; raises `InvalidRequest` for the caller's fault."""
        ...

    def count(self, request: GenerateRequest | EmbedRequest) -> int:
        """Tokens of the request's prompt; raises `InvalidRequest` as `prepare` does for a prompt that cannot be."""
        ...

    def add(self, prepared: Any) -> None:
        """Queue what `prepare` returned; raises `Overloaded` when the queue is full."""
        ...

    def cancel(self, request_id: str) -> None:
        """Forget a request at once, freeing its blocks; unknown ids are ignored."""
        ...

    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        ...

    def step(self) -> list[tuple[str, Outcome]]:
        """Run one iteration (some prefill, one token for each running sequence) and return what came of it, by
        request id. A request ends with `Usage`, `Embeddings` or an `InterlaceError`."""
        ...

    def capabilities(self) -> Capabilities:
        """What it can do."""
        ...

    def health(self) -> Health:
        """Counters now; `state` is "ready"."""
        ...
