"""A classifier as an input guard: what is refused, in parts too, and that whatever it cannot judge does not pass."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

import pytest

from interlace.config import ClassifierSettings, GuardSettings, load_settings
from interlace.engines.types import Capabilities, Embeddings, EmbedRequest, GenerateRequest
from interlace.errors import (
    ConfigError,
    ContentFiltered,
    ContextLengthExceeded,
    EngineFailed,
    EngineUnavailable,
    GuardFailed,
    GuardUnavailable,
    Overloaded,
)
from interlace.safety import Guards
from interlace.safety.judging import PARTS_MAX, TOKENS_MAX


class Words:
    """A classifier of words: it reads eight, or `reads`, and takes a text with `phrase` for spam."""

    def __init__(
        self,
        *,
        score: float = 0.9,
        error: Exception | None = None,
        reads: int = 8,
        phrase: str = "bad",
        hangs: bool = False,
        yields: bool = False,
    ) -> None:
        self.read: list[str] = []
        self.owners: list[tuple[str, int]] = []
        self.counted = 0
        self._score, self._error, self._reads, self._hangs = score, error, reads, hangs
        self._phrase, self._yields = f" {phrase} ", yields

    def capabilities(self) -> Capabilities:
        """Two labels."""
        return Capabilities(embed=False, labels=("ham", "spam"), context_length=self._reads)

    async def count(self, request: GenerateRequest | EmbedRequest) -> int:
        """Words of the one text; raises for too many."""
        assert isinstance(request, EmbedRequest)
        self.counted += 1
        self.owners.append((request.tenant, request.priority))
        if self._yields:
            await asyncio.sleep(0)  # as one does whose tokenizer is in another process
        words = len(request.texts[0].split())
        if words > self._reads:
            raise ContextLengthExceeded("too long")
        return words

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Spam where the phrase is in it."""
        self.owners.append((request.tenant, request.priority))
        if self._error is not None:
            raise self._error
        if self._hangs:
            await asyncio.Event().wait()
        self.read += request.texts
        scores = [self._score if self._phrase in f" {' '.join(text.split())} " else 0.1 for text in request.texts]
        rows = tuple(struct.pack("<2f", 1 - score, score) for score in scores)
        return Embeddings(rows, 2, 1, labels=("ham", "spam"))


def guarded(engine: Words, *refuse: str, above: float = 0.5) -> Guards:
    """Guards with that classifier."""
    one = ClassifierSettings("judge", refuse or ("spam",), above)
    return Guards.from_settings(GuardSettings(classifiers=(one,)), engines={"judge": engine})  # type: ignore[dict-item]


async def test_a_text_with_a_refused_label_does_not_pass() -> None:
    """Any text of a request, wherever it stands; the rest passes, and the request is told no more than that."""
    guards = guarded(Words())
    await guards.judge(["all good", "", "good"], param="messages")
    with pytest.raises(ContentFiltered, match="refused by the content guard") as caught:
        await guards.judge(["all good", "this is bad"], param="messages")
    assert (caught.value.param, caught.value.code) == ("messages", "content_filter")
    assert guards.reads_text, "token ids would pass unread"


@pytest.mark.parametrize(("score", "passes"), [(0.79, True), (0.81, False)])
async def test_the_score_decides(score: float, passes: bool) -> None:
    """Below `above` a label refuses nothing, from there on it does."""
    guards = guarded(Words(score=score), above=0.8)
    if passes:
        await guards.judge(["bad"], param="input")
    else:
        with pytest.raises(ContentFiltered):
            await guards.judge(["bad"], param="input")


async def test_a_long_text_is_judged_in_parts_and_all_of_it() -> None:
    """A word at the end of a text that is longer than the classifier reads is found; no word is left out."""
    engine = Words()
    words = [f"w{number}" for number in range(100)]
    await guarded(engine).judge([" ".join(words)], param="input")
    assert list(dict.fromkeys(word for part in engine.read for word in part.split() if word in words)) == words
    assert all(len(part.split()) <= 8 for part in engine.read)
    with pytest.raises(ContentFiltered):
        await guarded(Words()).judge([" ".join([*words, "bad"])], param="input")


async def test_what_stands_across_a_cut_is_read_whole() -> None:
    """Who fills up a text until the cut falls into what is forbidden would pass."""
    for before in range(60, 100):
        text = " ".join([*["word"] * before, "bad of two words", *["word"] * (160 - before)])
        with pytest.raises(ContentFiltered, match="refused by"):
            await guarded(Words(phrase="bad of two words", reads=64)).judge([text], param="input")


async def test_what_is_too_much_is_refused_with_what_would_be_read() -> None:
    """Nobody has read all of it, and one request may not fill the classifier's queue. Too many texts are not counted at
    all; a long one, no further than is read."""
    engine = Words()
    with pytest.raises(ContentFiltered, match=f"has {PARTS_MAX + 1} texts; .* at most {PARTS_MAX}. Send fewer"):
        await guarded(engine).judge([f"w{number}" for number in range(PARTS_MAX + 1)], param="input")
    assert engine.counted == 0
    with pytest.raises(ContentFiltered, match=f"{PARTS_MAX} parts. Send less") as caught:
        await guarded(engine).judge(["w " * 400_000], param="input")
    assert caught.value.param == "input"
    assert engine.counted < 3 * PARTS_MAX
    engine = Words(reads=1000)
    with pytest.raises(ContentFiltered, match=f"at most {TOKENS_MAX} tokens"):
        await guarded(engine).judge(["w " * (TOKENS_MAX + 1)], param="input")
    assert not engine.read


@pytest.mark.parametrize("text", ["\U0001d41b\U0001d41a\U0001d41d", "\uff42\uff41\uff44", f"{'x' * 180}bad"])
async def test_letters_that_a_classifier_has_not_are_plain_to_it(text: str) -> None:
    """WordPiece knows no mathematical letters and no words of over a hundred characters: both would be one unknown
    word, whatever they say to a model."""
    with pytest.raises(ContentFiltered):
        await guarded(Words(reads=64)).judge([text], param="input")


async def test_marks_in_a_row_take_no_longer_than_others() -> None:
    """Normalising takes the square of them; nobody else would be answered for minutes."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    await guarded(Words(reads=10**6)).judge(["a" + "\u0315\u0300" * 100_000], param="input")
    assert loop.time() - began < 5


async def test_nobody_waits_while_a_huge_text_is_made_legible() -> None:
    """A million letters that stand for eighteen each take seconds; they are read piece by piece, and only as far as
    anything is judged."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    loop = asyncio.get_running_loop()
    ticking, began = asyncio.create_task(tick()), loop.time()
    with pytest.raises(ContentFiltered, match="Send less"):
        await guarded(Words(reads=512, yields=True)).judge(["\ufdfa" * 1_000_000], param="input")
    assert loop.time() - began < 2
    assert ticks > 100
    ticking.cancel()


async def test_a_judge_waits_in_its_queue_as_the_caller() -> None:
    """Else all organisations would be one there, and whoever sends much would send everybody else away."""
    engine = Words()
    await guarded(engine).judge(["good"], param="input", tenant="acme", priority=-7)
    await guarded(engine).check_decoded("good", param="prompt", tenant="acme", priority=-7)
    assert engine.owners == [("acme", -7)] * 4


async def test_what_is_put_together_is_judged_too() -> None:
    """Also where nothing but a classifier is configured: a model reads the parts of a message as one."""
    await guarded(Words()).judge(["b", "ad"], param="messages")
    with pytest.raises(ContentFiltered):
        await guarded(Words()).judge(["b", "ad"], ["bad", "b\nad"], param="messages")


async def test_a_judge_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that hangs would hold every request there is, and their slots."""
    monkeypatch.setattr("interlace.safety.judging.SECONDS_MAX", 0.05)
    with pytest.raises(GuardUnavailable, match="not ready") as caught:
        await asyncio.wait_for(guarded(Words(hangs=True)).judge(["good"], param="input"), 10)
    assert caught.value.retry_after_seconds


async def test_a_classifier_that_reads_nothing_lets_nothing_pass() -> None:
    """No text is short enough for it: cutting must come to an end."""
    with pytest.raises(GuardFailed, match="failed under this request"):
        await asyncio.wait_for(guarded(Words(reads=0)).judge(["good"], param="input"), 10)


async def test_what_cannot_be_judged_does_not_pass() -> None:
    """A label that the classifier has not, scores that are none, an engine that fails: nobody passes, and nobody is
    told that it was a mistake of the request's. One that is loading or full is told as such, so that callers come
    again."""
    for engine, refuse in (
        (Words(), "spma"),
        (Words(score=float("nan")), "spam"),
        (Words(error=ValueError()), "spam"),
        (Words(error=EngineFailed("The engine died.")), "spam"),
    ):
        with pytest.raises(GuardFailed, match="failed under this request") as failed:
            await guarded(engine, refuse).judge(["bad"], param="input")
        assert failed.value.status >= 500
    for error in (EngineUnavailable("loading"), Overloaded("full")):
        with pytest.raises(GuardUnavailable, match="not ready") as caught:
            await guarded(Words(error=error)).judge(["good"], param="input")
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
