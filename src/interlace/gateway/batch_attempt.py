"""One attempt at a line of a batch: what it asks, and what the line gets of it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from interlace.deposits import Batch, Deposits, Line, Result, output_row
from interlace.errors import (
    EngineUnavailable,
    GuardUnavailable,
    InsufficientQuota,
    InterlaceError,
    LedgerUnavailable,
    Overloaded,
    RateLimited,
    Unauthenticated,
)
from interlace.gateway.batch_endpoints import ENDPOINTS, LineEndpoint
from interlace.gateway.calls import Done
from interlace.gateway.meter import Meter
from interlace.gateway.rendering import Rendering
from interlace.ledger import Outcome, Write

_log = logging.getLogger(__name__)

BUG = "The server had an error while processing your request."

_COME_BACK = (RateLimited, Overloaded, InsufficientQuota, EngineUnavailable, GuardUnavailable, LedgerUnavailable)


@dataclass
class Attempt:
    """One request for a line. `recorded`: it left a usage event. `written`: the line's result lies beside it."""

    deposits: Deposits
    batch: Batch
    line: Line
    id: str
    last: bool  # a failure of ours is the line's result, too
    meter: Meter = field(default_factory=Meter)
    rendering: Rendering | None = None
    recorded: bool = False
    written: bool = False

    def beside(self, outcome: Outcome, error: BaseException | None) -> tuple[Write, ...]:
        """What is written with the usage event; must not fail, for then nobody would be billed."""
        self.recorded = True
        result = self.result(error)
        self.written = result is not None
        if result is None:
            return ()
        if error is not None:
            return result.writes()
        if result.failed:
            _log.error("an answer could not be rendered", extra={"fields": {"id": self.id, "outcome": outcome.value}})
            return result.writes()
        return (*result.writes(), *self.endpoint.keep(self.rendering, self.batch, self.deposits))

    @property
    def endpoint(self) -> LineEndpoint:
        """What it asks."""
        return ENDPOINTS[self.batch.endpoint]

    def result(self, error: BaseException | None) -> Result | None:
        """What the line gets, where this was its last attempt."""
        if error is None:
            try:
                return self._good()
            except Exception:  # noqa: BLE001 - it was answered and will be billed; the caller is told what is true
                return self._bad(InterlaceError(BUG))
        if isinstance(error, InterlaceError) and (self.last or is_final(error)):
            return self._bad(error)
        return None

    def _good(self) -> Result:
        usage = self.meter.usage()
        assert self.rendering is not None
        row = output_row(self.id, self.line.custom_id, 200, self.rendering.whole(Done(usage)))
        return Result(
            self.batch.id,
            self.line.number,
            row,
            failed=False,
            prompt=usage.prompt_tokens,
            cached=usage.cached_tokens,
            completion=usage.completion_tokens,
            reasoning=usage.reasoning_tokens,
        )

    def _bad(self, error: InterlaceError) -> Result:
        style = self.endpoint.style
        body = style.body(error, f"req_{self.id}".encode())
        row = output_row(self.id, self.line.custom_id, style.status(error), body)
        return Result(self.batch.id, self.line.number, row, failed=True)


def comes_back(error: InterlaceError) -> bool:
    """Whether it may get better by itself; not where a line asks for more than its plan ever allows."""
    hopeless = isinstance(error, RateLimited) and error.retry_after_seconds is None
    return isinstance(error, _COME_BACK) and not hopeless


def is_final(error: InterlaceError) -> bool:
    """Whether another attempt would end the same way."""
    return not comes_back(error) and error.status < 500 and not isinstance(error, Unauthenticated)
