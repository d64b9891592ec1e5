"""Looks through a text that nobody sends anywhere, such as training data, for what the secret guards would mask."""

from __future__ import annotations

from functools import cache

from interlace.safety.redactor import Search, whole
from interlace.safety.secrets import NAMES


def secrets_in(text: str) -> tuple[str, ...]:
    """The kinds of secrets in a text, in plain words ("API key"), each once, in order; never their values."""
    search = _every_kind()
    if not search.may_find(text):
        return ()
    return tuple(dict.fromkeys(NAMES[kind] for kind in whole(search, text).found))


@cache
def _every_kind() -> Search:
    return Search(dict.fromkeys(NAMES, "mask"))
