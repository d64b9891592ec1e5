"""Ids of responses and their items. An item's id says which response it belongs to, so that a reference finds it.

resp_{24 hex digits}                  a response: the id of its request, by which /v1/usage knows it too
msg_{24 hex digits}{4 hex digits}     its item of that number; those of the input begin at 8000
rs_{24 hex digits}{4 hex digits}.X    a thought that its provider calls X
"""

from __future__ import annotations

import re
from dataclasses import dataclass

FIRST_OF_INPUT = 0x8000

_RESPONSE = re.compile(r"resp_([0-9a-f]{24})")
_ITEM = re.compile(r"[a-z]{2,4}_([0-9a-f]{24})([0-9a-f]{4})(?:\.(.+))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ItemId:
    """What an item's id says."""

    response: str  # id of the response
    number: int
    provider: str = ""  # what its provider calls it


def response_id(request_id: str) -> str:
    """The id of the response to a request."""
    return f"resp_{request_id}"


def is_response_id(id: str) -> bool:
    """Whether a response could be called so."""
    return _RESPONSE.fullmatch(id) is not None


def item_id(prefix: str, response: str, number: int, provider: str = "") -> str:
    """The id of item `number` of a response."""
    made = f"{prefix}_{response.removeprefix('resp_')}{number:04x}"
    return f"{made}.{provider}" if provider else made


def read_item_id(id: str) -> ItemId | None:
    """What an id of ours says; None for any other."""
    found = _ITEM.fullmatch(id)
    return ItemId(response_id(found[1]), int(found[2], 16), found[3] or "") if found else None
