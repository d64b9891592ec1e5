"""The metrics that held-out answers can be scored by: each by its usual name, with a 95 % interval, and its gain.

All but `exact_match` compare the text that the model makes with the one of the example. Each gives every example a row
of statistics and makes the figure from their sum, so that drawing examples anew is cheap, also for those that are no
mean over examples (BLEU, chrF).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from interlace.tuning.scores import Interval, Known, drawn, middle, wilson

if TYPE_CHECKING:
    import numpy as np

Pairs = Sequence[tuple[str, str]]
"""What the model said, and the example's answer."""

_SECONDS = 1.0  # for a pattern over one text: one that backtracks for ever matches nothing
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WORD = re.compile(r"[^\W_]+")


class Measured(msgspec.Struct, frozen=True):
    """A metric before and after, and the change with its interval, of the same examples drawn in pairs. `unit` is
    `share` (0 to 1) or `points` (0 to 100, as sacreBLEU gives them); `signature` is sacreBLEU's, else empty."""

    name: str
    before: Interval
    after: Interval
    change: Interval
    unit: str
    signature: str = ""


@dataclass(frozen=True, slots=True)
class Metric:
    """How a figure is made. `library` is what it needs beside the product."""

    words: str
    score: Callable[[str, str, str], float] | None = None  # of one text, the one wanted, and the pattern
    corpus: str = ""  # sacreBLEU's class
    library: str = ""


def token_f1(said: str, wanted: str, _: str = "") -> float:
    """SQuAD's: words in common, after lower case and without punctuation and English articles."""
    ours, theirs = _squad(said), _squad(wanted)
    common = sum((Counter(ours) & Counter(theirs)).values())
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * common / (len(ours) + len(theirs))


def rouge_l(said: str, wanted: str, _: str = "") -> float:
    """The F1 of the longest common subsequence of words, in lower case. Of English, what the package rouge-score gives
    as `rougeL`; that one drops letters of other languages."""
    ours, theirs = (_WORD.findall(text.lower()) for text in (said, wanted))
    if not ours or not theirs:
        return 0.0
    row = [0] * (len(theirs) + 1)
    for word in ours:
        corner = 0
        for place, other in enumerate(theirs, 1):
            corner, row[place] = row[place], corner + 1 if word == other else max(row[place], row[place - 1])
    return 2 * row[-1] / (len(ours) + len(theirs))


def first_line(said: str, wanted: str, _: str = "") -> float:
    """Whether the first lines are the same, but for white space at their ends."""
    ours, theirs = (text.strip().partition("\n")[0].strip() for text in (said, wanted))
    return float(ours == theirs)


def captured(said: str, wanted: str, pattern: str) -> float:
    """Whether the pattern takes the same out of both."""
    theirs = capture(pattern, wanted)
    return float(theirs is not None and capture(pattern, said) == theirs)


METRICS = {
    "exact_match": Metric("Exact match"),
    "token_f1": Metric("Token F1", score=token_f1),
    "rouge_l": Metric("ROUGE-L", score=rouge_l),
    "chrf": Metric("chrF", corpus="CHRF", library="sacrebleu"),
    "bleu": Metric("BLEU", corpus="BLEU", library="sacrebleu"),
    "first_line": Metric("First line right", score=first_line),
    "captured": Metric("Captured right", score=captured),
}


def needs_answers(name: str) -> bool:
    """Whether the model has to make texts for it."""
    return name != "exact_match"


def capture(pattern: str, text: str) -> str | None:
    """What the pattern finds last in the text, its first group where it has one; None where it finds nothing."""
    import regex

    try:
        found = list(regex.finditer(pattern, text, timeout=_SECONDS))
    except TimeoutError:
        return None
    if not found:
        return None
    taken = found[-1][1] if found[-1].re.groups else found[-1][0]
    return None if taken is None else str(taken).strip()


def flaw_of(pattern: str) -> str:
    """What is wrong with a pattern, or nothing."""
    import regex

    try:
        regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        return str(error) or "it is too deep"
    return ""


def measure_exact(before: Sequence[Known], after: Sequence[Known], seed: int = 0) -> Measured:
    """Exact match by tokens: the share with Wilson's interval, its change from pairs drawn anew."""
    import numpy as np

    rows = [np.array([(one.exact, 1) for one in known], dtype=float) for known in (before, after)]
    sums = [_sums(each, seed) for each in rows]
    low, high = middle(_mean(sums[1]) - _mean(sums[0]))
    first, then = (wilson(sum(one.exact for one in known), len(known)) for known in (before, after))
    return Measured("exact_match", first, then, Interval(then.value - first.value, low, high), "share")


def measure(
    name: str, before: Sequence[str], after: Sequence[str], wanted: Sequence[str], pattern: str = "", seed: int = 0
) -> Measured:
    """A metric of the texts that the model made before and after, against those wanted; all of one length, above 0."""
    metric = METRICS[name]
    rows, figure, signature = _ways(metric, pattern)
    values, draws = [], []
    for said in (before, after):
        statistics = rows(list(zip(said, wanted, strict=True)))
        values.append(float(figure(statistics.sum(axis=0, keepdims=True))[0]))
        draws.append(figure(_sums(statistics, seed)))
    return Measured(
        name,
        Interval(values[0], *middle(draws[0])),
        Interval(values[1], *middle(draws[1])),
        Interval(values[1] - values[0], *middle(draws[1] - draws[0])),
        "points" if metric.corpus else "share",
        signature,
    )


def shown(figure: Interval, unit: str, *, change: bool = False) -> str:
    """For people: percent of shares, points as they are."""
    scale, digits, mark = (100, 0, " %") if unit == "share" else (1, 1, "")
    sign = "+" if change else ""
    value, low, high = (f"{scale * each:{sign}.{digits}f}" for each in (figure.value, figure.low, figure.high))
    return f"{value}{mark} ({low} to {high})"


def words_of(measured: Measured) -> str:
    """One line: before, after, and the gain."""
    before, after = shown(measured.before, measured.unit), shown(measured.after, measured.unit)
    gain = shown(measured.change, measured.unit, change=True)
    return f"{METRICS[measured.name].words}: {before} before, {after} after, a change of {gain}."


# --- statistics --------------------------------------------------------------------------------------------------


def _ways(
    metric: Metric, pattern: str
) -> tuple[Callable[[Pairs], np.ndarray], Callable[[np.ndarray], np.ndarray], str]:
    """From pairs to rows of statistics; from sums of those to figures; and the signature."""
    if not metric.corpus:
        assert metric.score is not None, "exact match needs no texts"
        return partial(_scores, metric.score, pattern), _mean, ""
    import sacrebleu.metrics

    kept = getattr(sacrebleu.metrics, metric.corpus)()

    def rows(pairs: Pairs) -> np.ndarray:
        import numpy as np

        said, wanted = [one for one, _ in pairs], [one for _, one in pairs]
        return np.array(kept._extract_corpus_statistics(said, [wanted]), dtype=float)

    def figure(sums: np.ndarray) -> np.ndarray:
        import numpy as np

        whole = sums.astype(int).tolist()
        return np.array([kept._compute_score_from_stats(each).score for each in whole])

    rows([("", "")])  # the signature says how many references there are
    return rows, figure, str(kept.get_signature())


def _scores(score: Callable[[str, str, str], float], pattern: str, pairs: Pairs) -> np.ndarray:
    import numpy as np

    return np.array([(score(said, wanted, pattern), 1.0) for said, wanted in pairs])


def _mean(sums: np.ndarray) -> Any:
    return sums[:, 0] / sums[:, 1]


def _sums(rows: np.ndarray, seed: int) -> np.ndarray:
    """[resamples, statistics]: of each draw, the rows together."""
    import numpy as np

    def every() -> Iterator[np.ndarray]:
        for draw in drawn(len(rows), seed):
            yield np.bincount(draw, minlength=len(rows)) @ rows

    return np.array(list(every()))


def _squad(text: str) -> list[str]:
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return _ARTICLES.sub(" ", bare).split()
