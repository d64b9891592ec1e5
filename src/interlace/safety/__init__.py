"""Guards: what is checked before a request reaches an engine, and before an answer reaches a caller."""

from interlace.safety.finding import secrets_in
from interlace.safety.guards import Guards
from interlace.safety.output import OutputGuard
from interlace.safety.scanner import StreamScanner

__all__ = ["Guards", "OutputGuard", "StreamScanner", "secrets_in"]
