"""How a request ended, in the ledger's words."""

from __future__ import annotations

import asyncio

from interlace.errors import ContentFiltered, InterlaceError, InvalidRequest, Overloaded
from interlace.gateway.calls import Call, Work
from interlace.gateway.meter import Meter
from interlace.gateway.routing import Attempts, Remembered
from interlace.ledger import Outcome


def outcome_of_answer(meter: Meter) -> Outcome:
    """How an answer ended that came to its end."""
    if meter.filtered:
        return Outcome.FILTERED
    return Outcome.BUDGET_ENDED if meter.budget_ended else Outcome.FINISHED


def outcome_of_error(error: BaseException, call: Call, way: Work | Attempts | Remembered) -> Outcome:
    """What reached a provider is recorded, whoever refused it in the end. But a line of a batch that a provider is too
    busy for asks again, as long as the batch lasts, and leaves its event once it has an answer."""
    if isinstance(error, GeneratorExit) or (isinstance(error, asyncio.CancelledError) and call.client_gone()):
        return Outcome.CLIENT_GONE
    if isinstance(error, asyncio.CancelledError):
        return Outcome.CANCELLED
    if isinstance(error, ContentFiltered):
        return Outcome.FILTERED  # token ids that a guard refused once the engine had decoded them
    if call.meter.answering.completion_tokens:
        return Outcome.FAILED  # whatever a provider calls it: once there is work, it is recorded
    if call.batch is not None and isinstance(error, Overloaded):
        return Outcome.OVERLOADED
    reached = getattr(error, "upstream", False) or (isinstance(way, Attempts) and way.reached)
    if reached and isinstance(error, InterlaceError) and error.status < 500:
        return Outcome.PROVIDER_REFUSED
    if isinstance(error, Overloaded):
        return Outcome.OVERLOADED
    if isinstance(error, InvalidRequest) or (isinstance(error, InterlaceError) and error.status < 500):
        return Outcome.REFUSED
    return Outcome.FAILED
