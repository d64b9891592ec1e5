"""Rerankers and classifiers against transformers: tiny random BERT and RoBERTa, served from their own folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interlace.engines.core import Core
from interlace.engines.types import Embeddings, EmbedRequest
from interlace.errors import ContextLengthExceeded, InvalidRequest
from tests.support.driving import load, run
from tests.support.encoders import FRAMES, WORDS, tiny_encoder

Array = np.ndarray[Any, Any]

QUERY = "a cat sleeps"
TEXTS = ["dog", "a dog barks", "cat sleeps a lot " * 4, "x y z", "[SEP] cat", "a", "dog dog dog dog dog"]


def words(text: str) -> list[int]:
    """The ids of a text whose control tokens are not read as such."""
    return [
        WORDS.index(word) if word in WORDS[4:] else 1 for word in text.replace("[", "[ ").replace("]", " ]").split()
    ]


def inputs(family: str, query: str | None, text: str) -> tuple[list[int], list[int]]:
    """Ids and types as the family frames them."""
    cls, sep, second = [2], [3], words(text)
    if query is None:
        ids = cls + second + sep
        return ids, [0] * len(ids)
    first = cls + words(query) + sep
    if family == "bert":
        return first + second + sep, [0] * len(first) + [1] * (len(second) + 1)
    ids = first + sep + second + sep
    return ids, [0] * len(ids)


def logits(oracle: Any, family: str, query: str | None) -> Array:
    """transformers' numbers for each of `TEXTS`, one at a time."""
    import torch

    rows = []
    for text in TEXTS:
        ids, types = inputs(family, query, text)
        with torch.inference_mode():
            rows.append(oracle(torch.tensor([ids]), token_type_ids=torch.tensor([types])).logits[0].numpy())
    return np.stack(rows)


def score(core: Core, query: str | None = None) -> Array:
    """Our scores for `TEXTS`, as one request."""
    (answer,) = run(core, [EmbedRequest("r", texts=tuple(TEXTS), purpose="score", query=query)])["r"]
    assert isinstance(answer, Embeddings), answer
    assert answer.prompt_tokens > 0
    return np.stack([np.frombuffer(row, "<f4") for row in answer.rows])


@pytest.mark.parametrize("family", FRAMES)
def test_rerankers_equal_transformers(tmp_path: Path, family: str) -> None:
    """One score a document: the sigmoid of transformers' number for the pair, whatever it is batched with; a
    document's own control tokens are text."""
    oracle = tiny_encoder(family, "ForSequenceClassification", tmp_path, num_labels=1)
    core = load(tmp_path)
    assert core.capabilities().labels == ("LABEL_0",)
    expected = 1 / (1 + np.exp(-logits(oracle, family, QUERY)))
    assert np.ptp(expected) > 0.02
    np.testing.assert_allclose(score(core, QUERY), expected, atol=1e-5)


@pytest.mark.parametrize("family", FRAMES)
@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", "regression"])
def test_classifiers_equal_transformers(tmp_path: Path, family: str, problem: str) -> None:
    """One score a label, by the names of the config: softmax, sigmoid or plain as the problem wants."""
    labels = {0: "bad", 1: "fair", 2: "good"}
    oracle = tiny_encoder(family, "ForSequenceClassification", tmp_path, id2label=labels, problem_type=problem)
    core = load(tmp_path)
    assert core.capabilities().labels == ("bad", "fair", "good")
    numbers = logits(oracle, family, None)
    powers = np.exp(numbers - numbers.max(1, keepdims=True))
    expected = {
        "single_label_classification": powers / powers.sum(1, keepdims=True),
        "multi_label_classification": 1 / (1 + np.exp(-numbers)),
        "regression": numbers,
    }[problem]
    np.testing.assert_allclose(score(core), expected, atol=1e-5)


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta"])
def test_roberta_embeds(tmp_path: Path, family: str) -> None:
    """RoBERTa's positions begin behind its padding's id; the mean of its tokens is transformers'."""
    import torch

    oracle = tiny_encoder(family, "Model", tmp_path)
    core = load(tmp_path)
    (answer,) = run(core, [EmbedRequest("r", texts=tuple(TEXTS[:4]))])["r"]
    assert isinstance(answer, Embeddings)
    assert core.capabilities().context_length == 39
    for row, text in zip(answer.rows, TEXTS, strict=False):
        with torch.inference_mode():
            states = oracle(torch.tensor([inputs(family, None, text)[0]])).last_hidden_state[0]
        np.testing.assert_allclose(np.frombuffer(row, "<f4"), states.mean(0).numpy(), atol=1e-5)


def test_what_cannot_be_scored_is_refused(tmp_path: Path) -> None:
    """Each mistake is the caller's, and named: vectors of a reranker, no documents, an empty one, one too long."""
    tiny_encoder("bert", "ForSequenceClassification", tmp_path / "one", num_labels=1)
    core = load(tmp_path / "one")
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"purpose": "embed", "texts": ("a",)}, "model", "rerank"),
        ({"query": "a"}, "documents", "must not be empty"),
        ({"query": "a", "texts": ("a", "")}, "documents", r"documents\[1\] is an empty string"),
        ({"query": "", "texts": ("a",)}, "query", "empty string"),
        ({"texts": ("",)}, "input", r"input\[0\]"),
    ]
    for fields, param, message in cases:
        with pytest.raises(InvalidRequest, match=message) as caught:
            core.prepare(EmbedRequest("r", **({"purpose": "score"} | fields)))
        assert caught.value.param == param
    with pytest.raises(ContextLengthExceeded, match=r"documents\[0\] has 65 together with the query") as long:
        core.prepare(EmbedRequest("r", purpose="score", query="a cat", texts=("dog " * 60,)))
    assert long.value.param == "documents"
    tiny_encoder("bert", "ForSequenceClassification", tmp_path / "three", num_labels=3)
    with pytest.raises(InvalidRequest, match="classify"):
        load(tmp_path / "three").prepare(EmbedRequest("r", purpose="score", query="a", texts=("b",)))
