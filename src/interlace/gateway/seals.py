"""What a provider wants back with what it said, in dialects that have no field of its own for it.

A client sends back the id of a call and the signature of a thought as they came. So what belongs to them travels
inside: a call's signature at the end of its id, a thought's id before its signature.
"""

from __future__ import annotations

import base64
import binascii

_SEALED = "__sealed__"  # between a call's id and its signature
_NAMED = "interlace:"  # before a thought's id; a colon ends it


def sealed_id(id: str, signature: str) -> str:
    """A call's id with the signature in it, of letters that an id may have."""
    return f"{id}{_SEALED}{_packed(signature)}" if signature else id


def unsealed_id(id: str) -> tuple[str, str]:
    """The id and the signature of a call, as they were before `sealed_id`."""
    plain, mark, packed = id.rpartition(_SEALED)
    signature = _unpacked(packed) if mark else None
    return (id, "") if signature is None else (plain, signature)


def named_seal(seal: str, id: str) -> str:
    """A thought's signature, or what of it only its provider can read, with the thought's id before it."""
    return f"{_NAMED}{_packed(id)}:{seal}" if seal and id else seal


def unnamed_seal(seal: str) -> tuple[str, str]:
    """The signature and the id of a thought, as they were before `named_seal`."""
    packed, mark, plain = seal.removeprefix(_NAMED).partition(":")
    id = _unpacked(packed) if mark and seal.startswith(_NAMED) else None
    return (seal, "") if id is None else (plain, id)


def _packed(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _unpacked(packed: str) -> str | None:
    """The text; None for what `_packed` did not make."""
    try:
        return base64.b64decode(packed + "=" * (-len(packed) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        return None
