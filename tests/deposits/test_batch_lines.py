"""The input of a batch is found good or wrong, whatever is in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interlace.deposits import batch_lines
from interlace.deposits.batch_lines import check_lines, read_lines

URL = "/v1/chat/completions"
MOST = 500
ANY_FILE = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

NAMES = st.text(min_size=1, max_size=20)
VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3))


def written(folder: Path, content: bytes) -> Path:
    """A file with that content."""
    path = folder / "in"
    path.write_bytes(content)
    return path


@ANY_FILE
@given(bodies=st.dictionaries(NAMES, VALUES, min_size=1, max_size=8), gaps=st.lists(st.integers(0, 2), min_size=8))
def test_good_lines_come_back_as_they_went(tmp_path: Path, bodies: dict[str, Any], gaps: list[int]) -> None:
    """A line that came back otherwise, or under another number, would be answered as something nobody asked."""
    text, expected, number = b"", [], 1
    for gap, (name, value) in zip(gaps, bodies.items(), strict=False):
        body = {"model": "m", "value": value}
        text += b"\n" * gap + json.dumps({"custom_id": name, "method": "POST", "url": URL, "body": body}).encode()
        number += gap
        expected.append((number, name, body))
        text += b"\n"
        number += 1
    path = written(tmp_path, text)
    wanted = check_lines(path, URL, 100_000)
    assert (wanted.total, wanted.model, wanted.problems) == (len(expected), "m", ())
    assert [(line.number, line.custom_id, json.loads(line.body)) for line in read_lines(path)] == expected


@ANY_FILE
@given(content=st.binary(max_size=2000) | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_noise_is_wrong_and_says_where(tmp_path: Path, content: bytes) -> None:
    """No content at all raises anything, or passes for a batch."""
    wanted = check_lines(written(tmp_path, content), URL, MOST)
    assert wanted.problems
    assert all(problem.line is None or problem.line >= 1 for problem in wanted.problems)
    assert len(wanted.problems) <= batch_lines.MOST_PROBLEMS


def test_a_line_that_is_too_long_is_one_problem(tmp_path: Path) -> None:
    """Cut into several, what follows would be told under wrong numbers; read whole, it would fill the memory."""
    good = json.dumps({"custom_id": "a", "method": "POST", "url": URL, "body": {"model": "m"}}).encode()
    wanted = check_lines(written(tmp_path, b"x" * 200_000 + b"\n" + good + b"\n{"), URL, MOST)
    assert [(problem.code, problem.line) for problem in wanted.problems] == [
        ("request_too_large", 1),
        ("invalid_json_line", 3),
    ]
    assert wanted.total == 3


def test_there_are_only_so_many_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more than the largest batch is refused without reading on."""
    monkeypatch.setattr(batch_lines, "MOST_LINES", 3)
    lines = [json.dumps({"custom_id": str(i), "method": "POST", "url": URL, "body": {"model": "m"}}) for i in range(9)]
    assert check_lines(written(tmp_path, "\n".join(lines[:3]).encode()), URL, MOST).problems == ()
    (problem,) = check_lines(written(tmp_path, "\n".join(lines).encode()), URL, MOST).problems
    assert (problem.code, problem.line) == ("too_many_tasks", 4)


def test_blank_lines_count_to_the_last_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a gigabyte of them would keep the processor busy for minutes, at every start."""
    monkeypatch.setattr(batch_lines, "MOST_NUMBER", 5)
    (problem,) = check_lines(written(tmp_path, b"\n" * 9), URL, MOST).problems
    assert (problem.code, problem.line) == ("too_many_tasks", 6)
