"""The ledger: what was used, by whom. Today usage events are logged; the ledger's own issue will store and price them."""

from interlace.ledger.events import LogSink, Outcome, UsageEvent, UsageSink

__all__ = ["LogSink", "Outcome", "UsageEvent", "UsageSink"]
