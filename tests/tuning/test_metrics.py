"""The metrics of held-out answers: the figures that others give, intervals, and the words of a report."""

from __future__ import annotations

from random import Random

import pytest

from interlace.errors import ConfigError
from interlace.tuning.metrics import (
    METRICS,
    capture,
    captured,
    first_line,
    measure,
    measure_exact,
    rouge_l,
    token_f1,
    words_of,
)
from interlace.tuning.scores import Known
from interlace.tuning.settings import read_settings

GIVEN = {"base": "b", "data": "d.jsonl", "name": "n"}


def _texts(count: int = 50) -> tuple[list[str], list[str], list[str]]:
    """Answers before, after (about half of them right), and those wanted."""
    random, words = Random(0), [*"abcdefghijkl"]
    before, wanted = ([" ".join(random.choices(words, k=12)) for _ in range(count)] for _ in range(2))
    after = [right if random.random() < 0.5 else wrong for wrong, right in zip(before, wanted, strict=True)]
    return before, after, wanted


@pytest.mark.parametrize(
    ("said", "wanted", "figure"),
    [
        ("The cat sat.", "a cat sat down", 0.8),  # by hand: two of two and three words
        ("Denver Broncos", "denver broncos!", 1.0),
        ("The", "a", 1.0),  # nothing is left of either
        ("The", "cat", 0.0),
        ("no no no", "no", 0.5),  # a word counts as often as it is wanted
    ],
)
def test_token_f1_is_squads(said: str, wanted: str, figure: float) -> None:
    """Figures of the official evaluation script of SQuAD, whose name the metric has."""
    assert token_f1(said, wanted) == pytest.approx(figure)


@pytest.mark.parametrize(
    ("said", "wanted", "figure"),
    [
        # `rougeL` of rouge-score 0.1.2; the first is the example of its page.
        ("The quick brown dog jumps on the log.", "The quick brown fox jumps over the lazy dog", 0.5882352941176471),
        ("the cat was found under the bed", "the cat was under the bed", 12 / 13),
        ("_x_ don't", "x don t", 1.0),
        ("", "a", 0.0),
        ("Café à Paris", "café À paris", 1.0),  # ours: letters of all languages
    ],
)
def test_rouge_l_is_that_of_the_package_for_it(said: str, wanted: str, figure: float) -> None:
    """Figures computed with Google's rouge-score, so that they can be compared with published ones."""
    assert rouge_l(said, wanted) == pytest.approx(figure)


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_bleu_and_chrf_are_sacrebleus(name: str) -> None:
    """Of the whole corpus, by its public functions, with its signature; the interval is one of the corpus's figure."""
    sacrebleu = pytest.importorskip("sacrebleu", reason="pip install 'interlace[tune]'")
    before, after, wanted = _texts()
    found = measure(name, before, after, wanted)
    public = getattr(sacrebleu, f"corpus_{name}")
    assert found.before.value == pytest.approx(public(before, [wanted]).score)
    assert found.after.value == pytest.approx(public(after, [wanted]).score)
    assert found.after.low < found.after.value < found.after.high
    assert 0 < found.change.low < found.change.value < found.change.high
    assert "version:" in found.signature
    assert found.unit == "points"


def test_a_gain_is_counted_in_pairs() -> None:
    """Where every answer gains the same, the gain has no spread, however much the answers differ: else a sure gain on
    few examples would be lost in their differences."""
    before, wanted = ["a b", "c d e f", "g"], ["a x b", "c d e f y", "g z"]
    assert measure("rouge_l", before, before, wanted).change.high == 0
    known = [Known(1.0, 1, exact=number % 2 == 0) for number in range(40)]
    assert measure_exact(known, known).change == measure_exact(known[::-1], known[::-1]).change
    found = measure_exact([Known(1.0, 1, exact=False)] * 40, known)
    assert 0 < found.change.low < 0.5 < found.change.high
    assert (found.change.value, found.after.value) == (0.5, 0.5)


def test_what_is_captured_is_the_last_that_the_pattern_finds() -> None:
    """A calculation is followed by its result; a pattern that would take for ever finds nothing, soon."""
    assert capture(r"= (\d+)", "2 + 2 = 4, and 4 + 1 = 5.") == "5"
    assert capture(r"\d+ %", "10 % or 20 %") == "20 %"
    assert capture("(a+)+$", "a" * 60 + "b") is None
    assert captured("So: Answer: 7", "Answer: 7", r"Answer: (\d+)") == 1
    assert captured("Answer: 8", "Answer: 7", r"Answer: (\d+)") == 0
    assert captured("nothing", "nothing", r"Answer: (\d+)") == 0
    assert (first_line(" Yes \nbecause", "Yes"), first_line("Yes, but", "Yes")) == (1, 0)


def test_the_words_name_the_metric() -> None:
    """Percent of shares, sacreBLEU's points as they are; the gain has its sign."""
    found = measure("first_line", ["a", "b"], ["c", "d"], ["c", "d"])
    assert words_of(found) == (
        "First line right: 0 % (0 to 0) before, 100 % (100 to 100) after, a change of +100 % (+100 to +100)."
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"metric": "rouge-l"}, "Did you mean rouge_l? There are: exact_match, token_f1,"),
        ({"metric": "accuracy"}, f"There are: {', '.join(METRICS)}."),
        ({"metric": "captured"}, "metric_pattern: is missing"),
        ({"metric": "captured", "metric_pattern": "("}, "metric_pattern: is no regular expression"),
        ({"metric_pattern": "x"}, "metric_pattern: is for metric captured"),
    ],
)
def test_a_wrong_metric_is_told_before_anything_runs(given: dict[str, str], said: str) -> None:
    """With the list of those there are: a run takes hours, and its score comes at the end."""
    with pytest.raises(ConfigError) as caught:
        read_settings(None, GIVEN | given)
    assert said in caught.value.message
