"""Tables: rows of CSV, of tab-separated values and of Parquet, with the line where each begins.
In Parquet, that is the number of the row.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from interlace.tuning.lines import BOM, MOST_LINE_BYTES, Say, decoded, say_of_bom

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


def csv_rows(file: BinaryIO, separator: str, say: Say) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line and cells by column of each row that has as many cells as the header. Quotes as in RFC 4180; a cell may
    have line breaks, and is at most 131,072 characters long. Where commas are expected and the header has semicolons
    alone, as spreadsheets write it in many countries, these separate; that is told."""
    if separator == "," and _has_semicolons(file):
        separator = ";"
        what = "the columns are separated by semicolons, not commas, and are read so"
        say(1, "", what, "Nothing need be done, if that is right", severity="warning")
    spoilt: set[int] = set()
    reader = csv.reader(_lines(file, spoilt, say), delimiter=separator, strict=True)
    header: list[str] | None = None
    begins = 1
    try:
        for cells in reader:
            number, begins = begins, reader.line_num + 1
            if not spoilt.isdisjoint(range(number, begins)):
                if header is None:
                    return
                continue
            if not cells:
                continue
            if header is None:
                header = _header(number, cells, separator, say)
                if header is None:
                    return
            elif len(cells) != len(header):
                what = f"the row has {len(cells)} cells, the header {len(header)}"
                say(number, "", what, "Put quotes around a cell that has separators or line breaks in it")
            else:
                yield number, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        mend = 'Close each quoted cell with ", and write a quote within one twice'
        say(begins, "", f"the row cannot be read ({error})", mend)


def _has_semicolons(file: BinaryIO) -> bool:
    """Whether the first line that has something in it is one cell by commas, and several by semicolons."""
    lines = (raw.removeprefix(BOM) for raw in iter(partial(file.readline, MOST_LINE_BYTES), b""))
    line = next((raw for raw in lines if raw.strip()), b"")
    file.seek(0)
    text = codecs.decode(line, "utf-8", "replace").rstrip("\r\n")
    try:
        by_commas, by_semicolons = (next(csv.reader([text], delimiter=each, strict=True), []) for each in ",;")
    except csv.Error:
        return False
    return len(by_commas) == 1 < len(by_semicolons)


def _lines(file: BinaryIO, spoilt: set[int], say: Say) -> Iterator[str]:
    """Text with its line ends. A line that is not UTF-8 comes without what is not, so that rows keep their numbers; it
    is told, and its number goes into `spoilt`."""
    for number, raw in enumerate(iter(partial(file.readline, MOST_LINE_BYTES), b""), 1):
        if number == 1 and raw.startswith(BOM):
            say_of_bom(say)
        line = raw.removeprefix(BOM) if number == 1 else raw
        text = decoded(line, number, say)
        if text is None:
            spoilt.add(number)
            text = codecs.decode(line, "utf-8", "replace")
        yield text


def _header(number: int, cells: list[str], separator: str, say: Say) -> list[str] | None:
    if len(cells) == 1:
        for other, name in _SEPARATORS.items():
            if other != separator and other in cells[0]:
                mend = "Name the file *.tsv" if other == "\t" else f"Save it with {_SEPARATORS[separator]}"
                say(number, "", f"the columns are separated by {name}, not {_SEPARATORS[separator]}", mend)
                return None
    for index, name in enumerate(cells):
        if not name.strip():
            say(number, "", f"column {index + 1} has no name", "Name each column in the first line")
            return None
        if name in cells[:index]:
            say(number, repr(name)[1:-1][:40], "two columns have this name", "Keep one of them")
            return None
    return cells


def parquet_rows(path: Path, say: Say) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number (from 1) and values by column of each row."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        say(0, "", "reading Parquet needs pyarrow", "Install it: pip install 'interlace[tune]'; or save as JSON lines")
        return
    try:
        number = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError, ValueError) as error:
        words = str(error).partition("\n")[0][:200]
        say(0, "", f"this cannot be read as Parquet ({words})", "Write the file anew; it may have been cut off")


def parquet_class_names(path: Path) -> dict[str, tuple[str, ...]]:
    """By column: the names of the classes that stand there as numbers, where the libraries of Hugging Face wrote them
    into the file's schema. Empty where it tells none, or cannot be read."""
    from interlace.models import are_class_names

    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        return {}
    try:
        metadata = pq.read_schema(path).metadata or {}
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        classes = {
            str(column): one["names"]
            for column, one in features.items()
            if isinstance(one, dict) and one.get("_type") == "ClassLabel" and are_class_names(one.get("names"))
        }
    except (pa.ArrowException, OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return {}
    return {column: tuple(names) for column, names in classes.items()}
