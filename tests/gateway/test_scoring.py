"""`/v1/rerank` and `/v1/classify`: what comes back, what it costs, and what each model refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from interlace.config import ModelSettings, Settings
from tests.support.encoders import tiny_encoder
from tests.support.gateway_thread import Gateway, running_gateway
from tests.support.prices import costing
from tests.support.scripted_engine import ScriptedEngine
from tests.support.served import PATIENCE_SECONDS, served

DOCUMENTS = ["a b c", "a", {"text": "a b"}]


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """Engines that score a text the lower, the more words it has; a token costs three nano-dollars."""
    engines = {
        "reranker": ScriptedEngine(labels=("relevant",)),
        "classifier": ScriptedEngine(labels=("good", "bad")),
        "embedder": ScriptedEngine(embeds=True),
        "talker": ScriptedEngine(),
    }
    settings = Settings(
        home=Path("/nonexistent"),
        models=tuple(ModelSettings(name=name, checkpoint=name) for name in engines),
        prices=tuple(costing(name, 3, 0) for name in engines),
    )
    with running_gateway(settings, engines) as running:
        yield running


def post(gateway: Any, path: str, **body: Any) -> httpx.Response:
    """The answer to that body."""
    headers = {"authorization": f"Bearer {gateway.key}"}
    return httpx.post(gateway.url + path, json=body, headers=headers, trust_env=False, timeout=PATIENCE_SECONDS)


def test_documents_come_best_first(gateway: Gateway) -> None:
    """All are scored with the query, the best `top_n` told by their own places, texts only where they are wanted."""
    whole = post(gateway, "/v1/rerank", model="reranker", query="x y", documents=DOCUMENTS).json()
    assert [one["index"] for one in whole["results"]] == [1, 2, 0]
    assert [one["relevance_score"] for one in whole["results"]] == [0.5, 0.25, 0.125]
    assert "document" not in whole["results"][0]
    assert whole["usage"] == {"prompt_tokens": 8, "total_tokens": 8}
    assert gateway.engines["reranker"].seen[-1].query == "x y"  # type: ignore[attr-defined]
    some = post(
        gateway, "/v1/rerank", model="reranker", query="x y", documents=DOCUMENTS, top_n=2, return_documents=True
    ).json()
    assert [one["document"] for one in some["results"]] == [{"text": "a"}, {"text": "a b"}]


def test_texts_are_classified_in_their_order(gateway: Gateway) -> None:
    """Each text has the label of its highest score, and all scores in the order of `labels`."""
    answer = post(gateway, "/v1/classify", model="classifier", input=["a b", "a"]).json()
    assert answer["labels"] == ["good", "bad"]
    assert answer["data"][1] == {"index": 1, "label": "good", "probs": [0.5, 0.5], "num_classes": 2}
    assert [one["index"] for one in answer["data"]] == [0, 1]
    assert post(gateway, "/v1/classify", model="reranker", input="a").json()["data"][0]["label"] == "relevant"


@pytest.mark.parametrize(
    ("path", "body", "tokens"),
    [
        ("/v1/rerank", {"model": "reranker", "query": "x y", "documents": ["a b c", "a"]}, 6),
        ("/v1/classify", {"model": "classifier", "input": ["a b c", "a"]}, 4),
    ],
)
def test_scores_are_billed_by_their_input(gateway: Gateway, path: str, body: dict[str, Any], tokens: int) -> None:
    """One usage event with the tokens read, as of embeddings; every event names its endpoint."""
    before = len(gateway.events)
    assert post(gateway, path, **body).status_code == 200
    (event,) = gateway.events[before:]
    assert (event.endpoint, event.tokens.embedding, event.cost_nanos) == (path.rpartition("/")[2], tokens, 3 * tokens)


@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    [
        ("/v1/rerank", {"model": "classifier", "query": "x", "documents": ["a"]}, "model", "/v1/classify"),
        ("/v1/rerank", {"model": "embedder", "query": "x", "documents": ["a"]}, "model", "scores no texts"),
        ("/v1/classify", {"model": "talker", "input": "a"}, "model", "scores no texts"),
        ("/v1/embeddings", {"model": "reranker", "input": "a"}, "model", "makes no embeddings"),
        ("/v1/completions", {"model": "reranker", "prompt": "a"}, "model", "/v1/rerank"),
        ("/v1/rerank", {"model": "reranker", "query": "", "documents": ["a"]}, "query", "empty"),
        ("/v1/rerank", {"model": "reranker", "query": "x", "documents": ["a", ""]}, "documents", "empty"),
        ("/v1/rerank", {"model": "reranker", "query": "x", "documents": []}, "documents", ""),
        ("/v1/rerank", {"model": "reranker", "query": "x", "documents": ["a"], "top_n": 0}, "top_n", ""),
        ("/v1/classify", {"model": "classifier", "input": [1, 2]}, "input", ""),
    ],
)
def test_what_cannot_be_scored_is_refused(
    gateway: Gateway, path: str, body: dict[str, Any], param: str, words: str
) -> None:
    """The wrong kind of model, and bodies without a text to read: 400 that names the field, nothing billed."""
    before = len(gateway.events)
    answer = post(gateway, path, **body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"].startswith(param)
    assert words in error["message"]
    assert len(gateway.events) == before


def test_models_say_what_they_are_for(gateway: Gateway) -> None:
    """A list of models tells a reranker from a classifier."""
    rows = httpx.get(f"{gateway.url}/v1/models", headers=gateway.headers, trust_env=False).json()["data"]
    kinds = {row["id"]: row["kind"] for row in rows}
    assert (kinds["reranker"], kinds["classifier"]) == ("rerank", "classify")


def test_a_real_reranker_is_served(tmp_path: Path) -> None:
    """A cross-encoder from its own folder: scores are transformers' for each pair, through the host's socket."""
    import torch

    folder = tmp_path / "model"
    folder.mkdir()
    oracle = tiny_encoder("bert", "ForSequenceClassification", folder, num_labels=1)
    with served(tmp_path, [{"name": "small", "checkpoint": str(folder)}]) as there:
        answer = post(there, "/v1/rerank", model="small", query="a cat", documents=["dog barks", "cat sleeps"]).json()
        assert there.usage()[-1].tokens.embedding == answer["usage"]["total_tokens"] == 14
    found = {one["index"]: one["relevance_score"] for one in answer["results"]}
    ids = torch.tensor([[2, 4, 30, 3, 31, 33, 3], [2, 4, 30, 3, 30, 32, 3]])
    with torch.inference_mode():
        numbers = oracle(ids, token_type_ids=torch.tensor([[0, 0, 0, 0, 1, 1, 1]] * 2)).logits[:, 0].numpy()
    np.testing.assert_allclose([found[0], found[1]], 1 / (1 + np.exp(-numbers)), atol=1e-5)
