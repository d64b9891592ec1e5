"""Payment card numbers: how they begin, how long they are, how they are written, and Luhn's checksum.

All four must hold, because one number in ten passes Luhn alone. Floats, phone numbers, hashes, UUIDs and longer runs of
digits are no cards: what stands right before and after counts too.
"""

from __future__ import annotations

from collections.abc import Iterable

import regex

_LONGEST = 41  # 19 digits with a separator between each two, and what may follow: more is not needed to decide

_SHORT, _LONG = frozenset({16}), frozenset(range(16, 20))
_ISSUERS: tuple[tuple[str, str, frozenset[int]], ...] = (  # first and last prefix of a range, and the lengths there
    ("4", "4", frozenset({13, 16, 19})),  # Visa
    ("51", "55", _SHORT),  # Mastercard
    ("2221", "2720", _SHORT),
    ("34", "34", frozenset({15})),  # American Express
    ("37", "37", frozenset({15})),
    ("300", "305", frozenset({14, 16})),  # Diners Club
    ("36", "36", frozenset({14, 16})),
    ("38", "39", frozenset({14, 16})),
    ("6011", "6011", _LONG),  # Discover
    ("644", "659", _LONG),
    ("3528", "3589", _LONG),  # JCB
    ("62", "62", _LONG),  # UnionPay
    ("81", "82", _LONG),  # UnionPay, RuPay
    ("508", "508", _SHORT),  # RuPay
    ("60", "60", _SHORT),
    ("2200", "2204", _LONG),  # Mir
    *((prefix, prefix, frozenset(range(13, 20))) for prefix in ("5018", "5020", "5038", "5893", "6304", "6759")),
    ("6761", "6763", frozenset(range(13, 20))),  # these, too: Maestro
)

_GAP = r"[ \-\u00a0\u2009\u202f\u2010-\u2013]"  # spaces and dashes, also those that do not break
_SHAPES = (
    r"[0-9]{13,19}+",
    rf"[0-9]{{4}}({_GAP})[0-9]{{4}}\1[0-9]{{4}}\1[0-9]{{4}}\1[0-9]{{1,3}}+",
    rf"[0-9]{{4}}({_GAP})[0-9]{{4}}\1[0-9]{{4}}\1[0-9]{{4}}",
    rf"[0-9]{{4}}({_GAP})[0-9]{{6}}\1[0-9]{{4,5}}+",
    rf"[0-9]{{4}}({_GAP})[0-9]{{3}}\1[0-9]{{3}}\1[0-9]{{3}}",
    rf"(?<![0-9]{_GAP})[0-9]({_GAP})[0-9](?:\1[0-9]){{11,17}}+(?!\1[0-9](?![0-9]))",
)
_AFTER = r"(?![A-Za-z0-9_]|\.[0-9])"
_WRITTEN = tuple(regex.compile(shape + _AFTER + (r"(?!-[0-9])" if _GAP in shape else "")) for shape in _SHAPES)
_COULD = regex.compile(  # the same as far as it goes; looking ahead is for `_WRITTEN`
    r"[0-9]{13,19}|[0-9]{4}(GAP)(?:[0-9]{4}\1[0-9]{4}\1[0-9]{4}|[0-9]{6}\1[0-9]{4}|[0-9]{3}\1[0-9]{3}\1[0-9]{3})"
    r"|[0-9](GAP)[0-9](?:\2[0-9]){11}".replace("GAP", _GAP)
)
_RUN = regex.compile(rf"[0-9](?:{_GAP}?[0-9]){{0,40}}+(?:{_GAP}|\.)?")
_NO_DIGIT = regex.compile(r"[^0-9]")

CARD_START = r"(?<![0-9][.\-])[2-68]"
"""How a card number begins, after whatever boundary is asked for."""


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of those before it."""
    odd, even = digits[::-1][::2], digits[::-1][1::2]
    return not (sum(map(int, odd)) + sum(sum(divmod(2 * int(digit), 10)) for digit in even)) % 10


def is_card(digits: str) -> bool:
    """Whether these digits, and nothing else, are a payment card number."""
    issued = any(
        len(digits) in lengths and low <= digits[: len(low)] <= high for low, high, lengths in _ISSUERS
    )  # a prefix range compares as text, because both ends have the same length
    return issued and luhn(digits) and not (len(digits) == 13 and _article(digits))


def card_at(text: str, at: int, *, final: bool) -> int | None:
    """The length of the card number that begins here; 0: none does; None: more text must come to tell."""
    run = _RUN.match(text, at)
    if run is None:
        return 0
    digits = _NO_DIGIT.sub("", run[0])
    if not any(low[: len(digits)] <= digits[: len(low)] <= high[: len(digits)] for low, high, _ in _ISSUERS):
        return 0
    if not final and run.end() == len(text) < at + _LONGEST:
        return None if _COULD.match(text, at, partial=True) else 0
    return next((len(found) for found in _written(text, at) if is_card(_NO_DIGIT.sub("", found))), 0)


def _written(text: str, at: int) -> Iterable[str]:
    shapes = _WRITTEN[:-1] if text[at + 1 : at + 2].isdigit() else _WRITTEN[-1:]
    return (found[0] for shape in shapes if (found := shape.match(text, at)))


def _article(digits: str) -> bool:
    """Whether 13 digits are an article number (EAN): goods are told of more often than cards of 13 digits, which are
    hardly issued any more."""
    return not (sum(map(int, digits[::2])) + 3 * sum(map(int, digits[1::2]))) % 10
