"""From token ids back to text, one token at a time, without ever showing half a character."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Collection, Mapping, Sequence

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in plain}
    others = [byte for byte in range(256) if byte not in set(plain)]
    return alphabet | {chr(256 + place): byte for place, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()


def _byte_level(token: str) -> bytes:
    try:
        return bytes(_ALPHABET[character] for character in token)
    except KeyError:  # not spelled in the alphabet: the token is its own text
        return token.encode()


def _sentencepiece(token: str) -> bytes:
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else token.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()


def token_table(vocabulary: Mapping[str, int], added: Mapping[int, str], *, byte_level: bool) -> list[bytes]:
    """The bytes each id stands for, by id; an id nobody uses is empty.

    `added` tokens are literally their text; the others are spelled in the byte alphabet, or as SentencePiece does.
    """
    table = [b""] * (max([*vocabulary.values(), *added], default=-1) + 1)
    spelled: Callable[[str], bytes] = _byte_level if byte_level else _sentencepiece
    for token, index in vocabulary.items():
        table[index] = spelled(token)
    for index, text in added.items():
        table[index] = text.encode()
    return table


class Decoder:
    """Text of one sequence as it grows. Bytes that can never become a character show as U+FFFD.

    `strips`: one space at the very beginning is left out."""

    def __init__(self, table: Sequence[bytes], hidden: Collection[int], *, strips: bool = False) -> None:
        self._table = table
        self._hidden = hidden
        self._strips = strips
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text this token completes: nothing for a hidden (special) token or inside a character."""
        if token_id in self._hidden or token_id >= len(self._table):
            return ""
        spelled = self._table[token_id]
        if self._strips and spelled:
            self._strips = False
            spelled = spelled.removeprefix(b" ")
        return self._utf8.decode(spelled)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character cut short, else nothing."""
        return self._utf8.decode(b"", final=True)
