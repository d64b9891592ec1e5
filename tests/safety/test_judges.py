"""A classifier as an input guard: what is refused, in parts too, and that whatever it cannot judge does not pass."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from interlace.config import ClassifierSettings, GuardSettings, load_settings
from interlace.engines.types import Capabilities, Embeddings, EmbedRequest, GenerateRequest
from interlace.errors import ConfigError, ContentFiltered, ContextLengthExceeded, EngineUnavailable, Overloaded
from interlace.safety import Guards


class Words:
    """A classifier of single words: it reads eight, and takes `bad` for spam."""

    def __init__(self, *, score: float = 0.9, error: Exception | None = None) -> None:
        self.read: list[str] = []
        self._score, self._error = score, error

    def capabilities(self) -> Capabilities:
        """Two labels."""
        return Capabilities(embed=False, labels=("ham", "spam"), context_length=8)

    async def count(self, request: GenerateRequest | EmbedRequest) -> int:
        """Words of the one text; raises for more than eight."""
        assert isinstance(request, EmbedRequest)
        words = len(request.texts[0].split())
        if words > 8:
            raise ContextLengthExceeded("too long")
        return words

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Spam where `bad` is among the words."""
        if self._error is not None:
            raise self._error
        self.read += request.texts
        scores = [self._score if "bad" in text.split() else 0.1 for text in request.texts]
        rows = tuple(struct.pack("<2f", 1 - score, score) for score in scores)
        return Embeddings(rows, 2, 1, labels=("ham", "spam"))


def guarded(engine: Words, *refuse: str, above: float = 0.5) -> Guards:
    """Guards with that classifier."""
    one = ClassifierSettings("judge", refuse or ("spam",), above)
    return Guards.from_settings(GuardSettings(classifiers=(one,)), engines={"judge": engine})  # type: ignore[dict-item]


async def test_a_text_with_a_refused_label_does_not_pass() -> None:
    """Any text of a request, wherever it stands; the rest passes, and the request is told no more than that."""
    guards = guarded(Words())
    await guards.check_input(["all good", "", "good"], param="messages")
    with pytest.raises(ContentFiltered, match="refused by the content guard") as caught:
        await guards.check_input(["all good", "this is bad"], param="messages")
    assert (caught.value.param, caught.value.code) == ("messages", "content_filter")
    assert guards.reads_text, "token ids would pass unread"


@pytest.mark.parametrize(("score", "passes"), [(0.79, True), (0.81, False)])
async def test_the_score_decides(score: float, passes: bool) -> None:
    """Below `above` a label refuses nothing, from there on it does."""
    guards = guarded(Words(score=score), above=0.8)
    if passes:
        await guards.check_input(["bad"], param="input")
    else:
        with pytest.raises(ContentFiltered):
            await guards.check_input(["bad"], param="input")


async def test_a_long_text_is_judged_in_parts_and_all_of_it() -> None:
    """A word at the end of a text that is longer than the classifier reads is found; no word is left out."""
    engine = Words()
    words = [f"w{number}" for number in range(100)]
    await guarded(engine).check_input([" ".join(words)], param="input")
    assert " ".join(engine.read).split() == words
    assert all(len(part.split()) <= 8 for part in engine.read)
    with pytest.raises(ContentFiltered):
        await guarded(Words()).check_input([" ".join([*words, "bad"])], param="input")
    with pytest.raises(ContentFiltered, match="could not be checked"):
        await guarded(Words()).check_input(["w " * 40_000], param="input")


async def test_what_cannot_be_judged_does_not_pass() -> None:
    """A label that the classifier has not, scores that are none, an engine that fails: nobody passes. One that is
    loading or full is told as such, so that callers come again."""
    for engine, refuse in ((Words(), "spma"), (Words(score=float("nan")), "spam"), (Words(error=ValueError()), "spam")):
        with pytest.raises(ContentFiltered, match="could not be checked"):
            await guarded(engine, refuse).check_input(["bad"], param="input")
    for error in (EngineUnavailable("loading"), Overloaded("full")):
        with pytest.raises(EngineUnavailable, match="not ready") as caught:
            await guarded(Words(error=error)).check_input(["good"], param="input")
        assert caught.value.retry_after_seconds


def test_a_guard_names_a_model_that_is_served(tmp_path: Path) -> None:
    """A slip of the pen would be found by the first caller, who is refused."""
    file = tmp_path / "interlace.yaml"
    file.write_text(
        "models: [{name: spam, checkpoint: spam}]\nguards:\n  classifiers:\n    - {model: spma, refuse: []}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_settings(file)
    told = str(caught.value)
    assert "interlace.yaml:4: guards.classifiers[0].model: names 'spma'" in told
    assert "Did you mean" in told
    assert "guards.classifiers[0].refuse: is empty" in told
