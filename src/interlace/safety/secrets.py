"""What a secret looks like: payment cards, keys of providers, private keys.

Patterns are anchored at prefixes that providers gave their keys so that they can be found, and ask for that much more
that a word, a slug, an identifier or a placeholder such as `sk-xxxxxxxx` does not fit. Each is *decided by its first
characters*: no later text can turn a secret into none, so a stream is held back for a few characters only, and what
follows (`rest`) goes the way of its beginning. Cards alone need the character after them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import regex

from interlace.safety.cards import CARD_START, card_at

Kind = Literal["card", "api_key", "private_key"]

NAMES: dict[Kind, str] = {"card": "card number", "api_key": "API key", "private_key": "private key"}

# A letter before a secret means it is none, unless the letter is that of an escape: in JSON, a line break is `\n`.
_EDGE = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrtbf])|(?<=\\u[0-9A-Fa-f]{4}))"
_CARD_EDGE = _EDGE.replace("A-Za-z0-9", "A-Za-z0-9_+", 1)  # `+` begins a phone number

Rest = Callable[[str, int, bool, bool], tuple[int, bool]]


@dataclass(frozen=True, slots=True)
class Detector:
    """Finds one kind of secret.

    `start` is a regular expression without groups for the first characters; where it matches, `judge` (text, place,
    final) gives the length of the secret there, 0 where there is none, None where more text must come. `rest` (text,
    place, final, json) gives how far what follows belongs to the secret, and whether that was all. `signs` are words
    one of which stands in every such secret, at its very start; without any, a secret is made of `DIGITS` at least.
    """

    kind: Kind
    start: str
    judge: Callable[[str, int, bool], int | None]
    rest: Rest | None = None
    signs: tuple[str, ...] = ()


# --- keys of providers -------------------------------------------------------------------------------------------

_KEY = regex.compile(
    r"""
      sk-[A-Za-z0-9]{32}                                  # OpenAI's first kind, DeepSeek and many more
    | sk-(?:proj|svcacct|admin|None)-[A-Za-z0-9_\-]{32}   # OpenAI
    | sk-ant-[A-Za-z0-9_\-]{40}                           # Anthropic
    | sk-or-v1-[A-Za-z0-9]{32}                            # OpenRouter
    | sk-il-[A-Za-z0-9_\-]{20}                            # our own
    | AIza[A-Za-z0-9_\-]{35}                              # Google
    | gh[opsur]_[A-Za-z0-9]{36}                           # GitHub
    | github_pat_[A-Za-z0-9_]{36}
    | glpat-[A-Za-z0-9_\-]{20}                            # GitLab
    | hf_[A-Za-z0-9]{34}                                  # Hugging Face
    | gsk_[A-Za-z0-9]{40}                                 # Groq
    | xai-[A-Za-z0-9]{40}                                 # xAI
    | [rs]k_live_[A-Za-z0-9]{16}                          # Stripe
    """,
    regex.VERBOSE,
)
_PLAIN_KEY = regex.compile(  # these may well be without letters, or without digits
    r"(?:AKIA|ASIA)[A-Z0-9]{16}|xox[abeoprs]-[0-9][A-Za-z0-9\-]{15}|xapp-[0-9]-[A-Z0-9][A-Za-z0-9\-]{15}"  # AWS, Slack
)
_TOKEN = regex.compile(r"eyJ[A-Za-z0-9_\-]{8,256}+\.eyJ")  # JSON Web Token: `{"` in base64, twice

_KEY_SIGNS = (
    "sk-", "rk_live_", "sk_live_", "AIza", "gho_", "ghp_", "ghs_", "ghu_", "ghr_", "github_pat_", "glpat-", "hf_",
    "gsk_", "xai-", "AKIA", "ASIA", *(f"xox{letter}-" for letter in "abeoprs"), "xapp-",
)  # fmt: skip
_KEY_START = f"(?:{'|'.join(map(regex.escape, _KEY_SIGNS))})"


def _key_at(text: str, at: int, final: bool) -> int | None:
    for pattern, mixed in ((_KEY, True), (_PLAIN_KEY, False)):
        found = pattern.match(text, at, partial=not final)
        if found is not None:
            return None if found.partial else len(found[0]) * _looks_random(found[0][-16:], mixed=mixed)
    return 0


def _looks_random(tail: str, *, mixed: bool) -> bool:
    """No placeholder, and no name: enough different characters, of two kinds at least."""
    kinds = sum(any(test(letter) for letter in tail) for test in (str.isdigit, str.islower, str.isupper))
    return len(set(tail)) >= 6 and (kinds >= 2 or not mixed)


def _token_at(text: str, at: int, final: bool) -> int | None:
    found = _TOKEN.match(text, at, partial=not final)
    if found is None:
        return 0
    return None if found.partial else len(found[0])


_WORD = regex.compile(r"[A-Za-z0-9_\-]*+")
_DOTTED = regex.compile(r"(?:\.?[A-Za-z0-9_\-])*+")


def _word_rest(text: str, at: int, final: bool, json: bool) -> tuple[int, bool]:  # noqa: ARG001
    found = _WORD.match(text, at)
    end = found.end() if found else at
    return end, final or end < len(text)


def _dotted_rest(text: str, at: int, final: bool, json: bool) -> tuple[int, bool]:  # noqa: ARG001
    found = _DOTTED.match(text, at)
    end = found.end() if found else at
    return end, final or text[end:] not in ("", ".")


# --- private keys ------------------------------------------------------------------------------------------------

_BEGIN = regex.compile(r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_END_LONGEST = 100
_END_MARK = r"-----END (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
_END = regex.compile(rf"(?P<mark>{_END_MARK})")
_END_IN_JSON = regex.compile(rf'(?P<mark>{_END_MARK})|(?P<quote>")|\\.', regex.DOTALL)


def _block_at(text: str, at: int, final: bool) -> int | None:
    found = _BEGIN.match(text, at, partial=not final)
    if found is None:
        return 0
    return None if found.partial else len(found[0])


def _block_rest(text: str, at: int, final: bool, json: bool) -> tuple[int, bool]:
    """Up to the END line, or all there is; in JSON at most up to the end of the string."""
    pattern = _END_IN_JSON if json else _END
    while found := pattern.search(text, at):
        if found["mark"]:
            return found.end(), True
        if found["quote"]:
            return found.start(), True
        at = found.end()  # an escape, so that an escaped quote is none
    return (len(text), True) if final else (max(at, len(text) - _END_LONGEST), False)


# --- all of them -------------------------------------------------------------------------------------------------

DIGITS = 13
"""Fewer digits than that are no card."""

DETECTORS: tuple[Detector, ...] = (
    Detector("card", _CARD_EDGE + CARD_START, lambda text, at, final: card_at(text, at, final=final)),
    Detector("api_key", _EDGE + _KEY_START, _key_at, _word_rest, _KEY_SIGNS),
    Detector("api_key", _EDGE + "eyJ", _token_at, _dotted_rest, ("eyJ",)),
    Detector("private_key", "-----BEGIN ", _block_at, _block_rest, ("-----BEGIN ",)),
)

# --- a glance ----------------------------------------------------------------------------------------------------

_MARKS = ("-", "_")  # most signs have one of them, most texts none
_DIGIT = re.compile("[0-9]")
_DIGITS = re.compile(f"(?:[0-9][^0-9]*+){{{DIGITS}}}")


class Glance:
    """Whether a text may hold any secret of some detectors, at a fraction of the cost of looking for them: most texts
    hold none of the words that secrets begin with, and few digits."""

    def __init__(self, detectors: Sequence[Detector]) -> None:
        signs = dict.fromkeys(sign for one in detectors for sign in one.signs)
        self._marked = {mark: tuple(sign for sign in signs if mark in sign) for mark in _MARKS}
        self._unmarked = tuple(sign for sign in signs if not any(mark in sign for mark in _MARKS))
        self._cards = any(not one.signs for one in detectors)
        parts = [
            f"{_EDGE if one.start.startswith(_EDGE) else ''}(?:{'|'.join(_beginnings(one.signs))})"
            for one in detectors
            if one.signs
        ]
        self._beginning = re.compile(f"(?:{'|'.join(parts) or '(?!)'})\\Z")
        self._longest = max((len(sign) for one in detectors for sign in one.signs), default=0)

    def may_hold(self, text: str, at: int = 0) -> bool:
        """Of a text that is all there, from `at` on."""
        return self._has_sign(text, at) or (self._cards and _DIGITS.search(text, at) is not None)

    def may_begin(self, text: str, at: int) -> bool:
        """Of a text that goes on: whether one may begin at `at` or later, or at its end have begun."""
        if self._cards and _DIGIT.search(text, at) is not None:
            return True
        if self._has_sign(text, at):
            return True
        return self._beginning.search(text, max(at, len(text) - self._longest)) is not None

    def _has_sign(self, text: str, at: int) -> bool:
        for mark, signs in self._marked.items():
            if text.find(mark, at) >= 0:
                for sign in signs:
                    if text.find(sign, at) >= 0:
                        return True
        for sign in self._unmarked:  # noqa: SIM110 - a generator costs more than the search
            if text.find(sign, at) >= 0:
                return True
        return False


def _beginnings(signs: Sequence[str]) -> list[str]:
    """What may be the beginning of one of them, as patterns, the longest first."""
    cut = {sign[:length] for sign in signs for length in range(1, len(sign))}
    return [re.escape(beginning) for beginning in sorted(cut, key=len, reverse=True)]
