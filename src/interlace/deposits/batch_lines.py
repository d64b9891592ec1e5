"""The input of a batch: a file of JSON lines, each a request. Read line by line; checked as a whole before any runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

MOST_LINES = 50_000  # requests in a batch, as at OpenAI
MOST_NUMBER = 1_000_000  # the last line that may be one: its number has five hexadecimal digits in ids
MOST_PROBLEMS = 100  # told of one batch
MOST_CUSTOM_ID = 512  # characters


class Problem(msgspec.Struct, frozen=True):
    """Why a batch cannot run, as OpenAI tells it."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """One request: its number in the file (from 1), the name its caller gave it, and its body as JSON."""

    number: int
    custom_id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a whole file turned out to be: how many requests, of which model, and what is wrong with it."""

    total: int
    model: str | None
    problems: tuple[Problem, ...]


class _Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _Body(msgspec.Struct, frozen=True):
    model: Any = None
    stream: Any = None


_row_decoder = msgspec.json.Decoder(_Row)
_body_decoder = msgspec.json.Decoder(_Body)


def read_lines(path: Path) -> Iterator[Line]:
    """The requests of a file that was found good."""
    for number, text in _numbered(path, None):
        row = _row_decoder.decode(text)
        yield Line(number, row.custom_id, bytes(row.body))


def check_lines(path: Path, endpoint: str, most_line_bytes: int) -> Wanted:
    """Read a file through; what is wrong with it, up to `MOST_PROBLEMS`."""
    problems: list[Problem] = []
    names: set[str] = set()
    model: str | None = None
    total = 0
    for number, text in _numbered(path, most_line_bytes):
        total += 1
        if total > MOST_LINES or number > MOST_NUMBER:
            message = f"The batch input file contains too many requests. The maximum is {MOST_LINES}."
            problems.append(Problem("too_many_tasks", message, number))
            break
        found, its_model = _check(number, text, endpoint, model, names, most_line_bytes)
        model = model or its_model
        if found is not None:
            problems.append(found)
            if len(problems) == MOST_PROBLEMS:
                break
    if not total:
        message = "The input file is empty. Please ensure that the batch contains at least one request."
        problems.append(Problem("empty_file", message))
    return Wanted(total, model, tuple(problems))


def _numbered(path: Path, most_bytes: int | None) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers, and the first beyond `MOST_NUMBER` whatever it is. A line beyond
    `most_bytes` comes cut, and as one."""
    with path.open("rb") as file:
        number = 0
        while text := file.readline() if most_bytes is None else file.readline(most_bytes + 1):
            number += 1
            whole = text.endswith(b"\n")
            if text.strip() or number > MOST_NUMBER:
                yield number, text
            while most_bytes is not None and not whole and (rest := file.readline(1 << 16)):
                whole = rest.endswith(b"\n")


def _check(
    number: int, text: bytes, endpoint: str, model: str | None, names: set[str], most_bytes: int
) -> tuple[Problem | None, str | None]:
    """What is wrong with one line, if anything, and its model. `names` has the custom ids so far."""
    if len(text) > most_bytes:
        return Problem("request_too_large", f"This line is larger than {most_bytes} bytes.", number), None
    try:
        row = _row_decoder.decode(text)
        body = _body_decoder.decode(row.body)
    except msgspec.ValidationError as error:
        return Problem("invalid_request", f"This line is not a request: {str(error)[:300]}.", number), None
    except (ValueError, RecursionError):
        return Problem("invalid_json_line", "This line is not parseable as valid JSON.", number), None
    if row.custom_id in names:
        message = (
            f"The custom_id {row.custom_id[:100]!r} for this request is a duplicate of another request. The custom_id "
            "parameter must be unique for each request in a batch."
        )
        return Problem("duplicate_custom_id", message, number, "custom_id"), None
    names.add(row.custom_id)
    if not 0 < len(row.custom_id) <= MOST_CUSTOM_ID:
        message = f"The custom_id must have between 1 and {MOST_CUSTOM_ID} characters."
        return Problem("invalid_custom_id", message, number, "custom_id"), None
    if row.method != "POST":
        return Problem("invalid_method", "The method of a request must be POST.", number, "method"), None
    if row.url != endpoint:
        message = f"The URL provided for this request does not match the endpoint of the batch, {endpoint}."
        return Problem("url_mismatch", message, number, "url"), None
    if not isinstance(body.model, str):
        return Problem("missing_required_parameter", "The body has no model.", number, "body.model"), None
    if model is not None and body.model != model:
        message = f"The model of this request is not that of the batch, {model[:100]!r}: all must have the same."
        return Problem("model_mismatch", message, number, "body.model"), None
    if body.stream not in (None, False):
        message = "A request of a batch cannot be streamed: leave out 'stream'."
        return Problem("unsupported_parameter", message, number, "body.stream"), body.model
    return None, body.model
