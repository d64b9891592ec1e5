"""The moment at which a chunk was sent, inside its text: letters only, so that no guard takes it for a number.

A stamp is `q` and sixteen letters from `a` to `j`, the digits of microseconds on the machine's monotonic clock, which
all of its processes share.
"""

from __future__ import annotations

import re
import time

LENGTH = 17
_LETTERS = str.maketrans("0123456789", "abcdefghij")
_DIGITS = bytes.maketrans(b"abcdefghij", b"0123456789")
_STAMP = re.compile(rb"q([a-j]{16})")


def stamp() -> str:
    """Of now."""
    return "q" + f"{time.monotonic_ns() // 1000:016d}".translate(_LETTERS)


def stamps(data: bytes) -> list[int]:
    """Microseconds of all stamps in the bytes, in their order."""
    return [int(found.translate(_DIGITS)) for found in _STAMP.findall(data)]
