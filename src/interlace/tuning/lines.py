"""Bytes to lines of text, with a word on every way in which a file can be something else.

Nothing is mended here: a byte order mark is skipped because it is no text, and told; everything else is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO

MOST_LINE_BYTES = 8 << 20  # of one example; longer ones are files that lost their line ends

Say = Callable[..., None]
"""(line, field, problem, mend, severity="error") → None: takes down a problem."""

_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"PAR1", "a Parquet file", "Name it *.parquet"),
    (b"\x1f\x8b", "compressed with gzip", "Unpack it with gunzip"),
    (b"(\xb5/\xfd", "compressed with zstandard", "Unpack it with unzstd"),
    (b"BZh", "compressed with bzip2", "Unpack it with bunzip2"),
    (b"\xfd7zXZ", "compressed with xz", "Unpack it with unxz"),
    (b"PK\x03\x04", "a ZIP archive or a spreadsheet", "Unpack it, or save the sheet as CSV in UTF-8"),
    (b"\xd0\xcf\x11\xe0", "an old Office document", "Save it as CSV in UTF-8"),
    (b"%PDF", "a PDF document", "Write its examples as JSON lines"),
    (b"SQLite format 3", "an SQLite database", "Export its rows as CSV or JSON lines"),
    (b"ARROW1", "an Arrow file", "Save it as Parquet"),
)
_UTF32 = (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
BOM = b"\xef\xbb\xbf"


def foreign(head: bytes) -> tuple[str, str] | None:
    """What a file is that is no UTF-8 text, and the mend, by its first bytes; None where it may be text."""
    for magic, name, mend in _MAGIC:
        if head.startswith(magic):
            return f"this is {name}, not text", mend
    for marks, name in ((_UTF32, "UTF-32"), (_UTF16, "UTF-16")):
        if head.startswith(marks):
            return f"this is {name}, not UTF-8", f"Convert it: iconv -f {name} -t UTF-8 OLD > NEW"
    if b"\x00" in head:
        even, odd = head[0::2].count(0), head[1::2].count(0)
        if min(even, odd) == 0 and max(even, odd) > len(head) // 8:
            name = "UTF-16LE" if odd else "UTF-16BE"
            return f"this looks like {name}, not UTF-8", f"Convert it: iconv -f {name} -t UTF-8 OLD > NEW"
        return "this is a binary file, not text", "Give a file of JSON lines, CSV or Parquet"
    return None


def text_lines(file: BinaryIO, say: Say) -> Iterator[tuple[int, str]]:
    """Number and text of each line that holds more than white space, its line end included."""
    number = 0
    while raw := file.readline(MOST_LINE_BYTES + 2):
        number += 1
        if len(raw) > MOST_LINE_BYTES and not raw.endswith(b"\n"):
            while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
                pass
            say(
                number,
                "",
                f"the line is longer than {MOST_LINE_BYTES >> 20} MiB",
                "Put each example on a line of its own; of JSON that is an array: jq -c '.[]' OLD > NEW",
            )
            continue
        if number == 1 and raw.startswith(BOM):
            say_of_bom(say)
            raw = raw[len(BOM) :]
        if raw.strip() and (text := decoded(raw, number, say)) is not None:
            yield number, text


def say_of_bom(say: Say) -> None:
    """Take down that a file begins with a byte order mark."""
    say(
        1,
        "",
        "the file begins with a byte order mark, which is read as none of the text",
        'Save it as "UTF-8" and not as "UTF-8 with BOM"',
        severity="warning",
    )


def decoded(raw: bytes, number: int, say: Say) -> str | None:
    """A line of UTF-8 as text, or None and a problem."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"byte {error.start + 1} of the line (0x{raw[error.start]:02x}) is not UTF-8"
        say(number, "", what, f"Convert the file: iconv -f {_guess(raw)} -t UTF-8 OLD > NEW")
        return None


def _guess(raw: bytes) -> str:
    """The likeliest encoding of Western text that is not UTF-8: Windows has quotes and dashes at 0x80 to 0x9f."""
    return "WINDOWS-1252" if any(0x80 <= byte < 0xA0 for byte in raw) else "ISO-8859-1"
