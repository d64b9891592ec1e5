"""How often a contestant writes what the reference writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import agreement
from benchmarks.agreement import Agreement


class Writer:
    """Writes the sum of all it was given, modulo 50, at places (tokens given so far) that are not in `wrong`."""

    def __init__(self, wrong: frozenset[int] = frozenset()) -> None:
        self.wrong = wrong
        self.asked: list[tuple[int, int]] = []

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        """As a benchmark's process answers."""
        told = []
        for prompt in job["prompts"]:
            text = list(prompt)
            for _ in range(job["new_tokens"]):
                self.asked.append((prompt[0], len(text)))
                text.append((sum(text) + (len(text) in self.wrong)) % 50)
            told.append(text[len(prompt) :])
        return {"tokens": told}


@pytest.mark.parametrize("wrong", [(), (7,), (3, 4, 5), (3, 10, 11, 18), tuple(range(3, 23))])
def test_every_place_counts_once(monkeypatch: pytest.MonkeyPatch, wrong: tuple[int, ...]) -> None:
    """Of 20 places those count as different at which the contestant errs, and what follows an error is judged by the
    reference's text, not by the contestant's own."""
    monkeypatch.setattr(agreement, "_prompts", lambda _checkpoint, count: [[at, 1, 2] for at in range(count)])
    compared = Agreement(Path(), count=4, tokens=20)
    compared.learn(Writer())
    assert compared.percent(Writer(frozenset(wrong))) == pytest.approx(100 * (1 - len(wrong) / 20))


def test_texts_at_one_place_run_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A contestant that agrees is asked once for every eight tokens, with all texts: a comparison of thousands of
    tokens takes seconds."""
    monkeypatch.setattr(agreement, "_prompts", lambda _checkpoint, count: [[at, 1, 2] for at in range(count)])
    compared = Agreement(Path(), count=4, tokens=20)
    compared.learn(Writer())
    contestant = Writer()
    compared.percent(contestant)
    assert len(contestant.asked) == len(set(contestant.asked)) == 4 * 20
