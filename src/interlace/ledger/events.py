"""The usage event: the durable record of one request that ran. The ledger is the sum of them."""

from __future__ import annotations

from typing import Literal

import msgspec

from interlace.ledger.outcomes import Outcome
from interlace.ledger.prices import Tokens

AttemptEnd = Literal["served", "failed", "cancelled", "rejected", "reused"]


class Attempt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One model's try at a request that came by a route, in the order of their beginnings.

    At most one `served`: its answer is what the caller got. `cancelled`: another was quicker. `rejected`: it answered,
    and the route's policy judged that another model must. `reused`: nobody was asked, the answer that this model gave
    before was given again, for `percent` of the price. `failed` ones cost nothing; the others cost their tokens at
    the price of their model.
    """

    model: str
    engine: str
    why: str
    end: AttemptEnd
    price_id: int
    tokens: Tokens = Tokens()
    cost_nanos: int = 0
    error: str = ""  # the code of what failed, or what was found wrong with the answer
    estimated: bool = False
    disputed: bool = False
    percent: int = 100


class UsageEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What one request used and cost. `id` is unique and ours, whatever the caller calls the request.

    `day` (2026-01-31) is the calendar day on which the request was admitted, in the ledger's time zone: its first
    seven characters are the month whose budgets pay. Times are microseconds, `started_us` since 1970. The details
    (endpoint, times, tags) are gone once retention or an erasure has been there.

    One that came by a route has `attempts`: model, price and tokens are then those of the attempt that served (else of
    the last), and the cost is the sum of all. `attempt_us` says how long each took.
    """

    id: str
    org_id: str
    project_id: str
    key_id: str
    model: str
    engine: str
    endpoint: str | None
    outcome: Outcome
    price_id: int
    tokens: Tokens
    cost_nanos: int
    day: str
    started_us: int
    latency_us: int | None
    first_token_us: int | None = None
    tags: tuple[str, ...] = ()
    estimated: bool = False  # a provider did not report the tokens; they were counted here
    disputed: bool = False  # what a provider reports contradicts what was seen: charged as reported, to be reconciled
    overrun_nanos: int = 0  # how much of the cost lay beyond the reservation: a provider used more than its limit
    batch: bool = False
    route: str | None = None
    attempts: tuple[Attempt, ...] = ()
    attempt_us: tuple[int, ...] | None = None

    @property
    def month(self) -> str:
        """The month whose budgets pay."""
        return self.day[:7]
