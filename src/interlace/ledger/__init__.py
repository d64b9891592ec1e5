"""The ledger: what was used, by whom. Usage events are logged as JSON lines; nothing is stored or priced."""

from interlace.ledger.events import LogSink, Outcome, UsageEvent, UsageSink

__all__ = ["LogSink", "Outcome", "UsageEvent", "UsageSink"]
