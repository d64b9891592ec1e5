"""`interlace tune --task classify`: a tiny random BERT learns labels, which the server gives as transformers does."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from interlace.config import read_added_models
from interlace.models import EncoderArchitecture, read_architecture
from interlace.tuning import read_examples, split
from interlace.tuning.folder import RunFolder
from tests.support.encoders import WORDS
from tests.support.labelled import SETTINGS, Classes
from tests.support.served import Served, served
from tests.support.serving import COMMAND, environment
from tests.support.tuned import needs_parts

pytestmark = needs_parts

TEXTS = ["z cat sleeps cat q", "b dog barks dog", "a dog b barks [SEP] cat", "x y"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Classes:
    """A run that nothing disturbed, over a base without a head."""
    classes = Classes(tmp_path_factory.mktemp("classes"))
    done = classes.run("--json", "--licence", "CC0-1.0", "--source", "made up")
    assert done.returncode == 0, done.stderr
    assert "has no head" in done.stderr
    assert "canine, feline" in done.stderr
    assert json.loads(done.stdout)["labels"] == ["canine", "feline"]
    return classes


def _by_transformers(checkpoint: Path, texts: list[str]) -> list[list[float]]:
    """Scores of texts whose control tokens are no tokens, one at a time."""
    import torch
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    rows = []
    for text in texts:
        words = text.replace("[", "[ ").replace("]", " ]").split()
        ids = [2, *(WORDS.index(word) if word in WORDS[4:] else 1 for word in words), 3]
        with torch.inference_mode():
            rows.append(model(torch.tensor([ids])).logits.softmax(-1)[0].tolist())
    return rows


def test_it_learns_the_labels_and_says_how_well(tuned: Classes) -> None:
    """On texts it never saw, accuracy and macro F1 rise above their intervals and the loss falls; the manifest tells
    labels, head and a figure for each label; else nobody knows what was made."""
    manifest = json.loads((tuned.path / "model" / "manifest.json").read_text())
    assert (manifest["task"], manifest["kind"], manifest["head"], manifest["merged"]) == (
        "classify", "full", "new", False,
    )  # fmt: skip
    metrics = manifest["metrics"]
    before, after = metrics["before"], metrics["after"]
    assert metrics["loss_change"]["high"] < 0
    assert after["accuracy"]["value"] > before["accuracy"]["high"]
    assert after["macro_f1"]["low"] <= after["macro_f1"]["value"] <= after["macro_f1"]["high"]
    assert after["macro_f1"]["value"] > before["macro_f1"]["value"]
    assert sum(each["examples"] for each in after["by_label"]) == after["examples"] == manifest["data"]["held_out"]
    assert manifest["settings"]["batch"] == 4
    assert manifest["parameters"]["trained"] == manifest["parameters"]["all"]
    report = tuned.report()
    assert [step for step, _ in report["curve"]["train"]] == list(range(1, report["steps"] + 1))
    architecture = read_architecture(tuned.checkpoint)
    assert isinstance(architecture, EncoderArchitecture)
    assert (architecture.labels, architecture.scores) == (("canine", "feline"), "softmax")


def _reload(running: Served, **changed: Any) -> None:
    """Change the configuration under a running server."""
    file = running.folder / "interlace.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changed))
    command = [sys.executable, "-m", "interlace", "reload", "--url", running.url]
    done = subprocess.run(
        command, env=environment(running.folder / "home"), check=False, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr


def _post(running: Served, path: str, model: str, texts: list[str]) -> httpx.Response:
    headers = {"authorization": f"Bearer {running.key}"}
    body = {"model": model, "input": texts}
    return httpx.post(f"{running.url}{path}", json=body, headers=headers, trust_env=False, timeout=60)


def test_a_running_server_has_it_at_once_and_is_guarded_by_it(tuned: Classes, tmp_path: Path) -> None:
    """No restart and no line in the configuration: the command ends, and `/v1/classify` gives transformers' own numbers
    for the same checkpoint, at the price of the model that has its base; a control token in a text is text, as it was
    when it was learnt from. As a guard, which the configuration names, it keeps texts of a label from every model."""
    shutil.copytree(tuned.folder / "base", tmp_path / "base")
    shutil.copytree(tuned.home / "tuning", tmp_path / "home" / "tuning")
    classes = Classes(tmp_path)
    base = {"name": "base", "checkpoint": str(tmp_path / "base"), "threads": 1}
    with served(tmp_path, [base]) as running:
        done = classes.run("--url", running.url)
        assert done.returncode == 0, done.stderr
        assert "trained before" in done.stderr
        assert "Served now as mine" in done.stdout
        assert f"curl {running.url}/v1/classify" in done.stdout
        assert "price" not in done.stdout
        answer = _post(running, "/v1/classify", "mine", TEXTS)
        _reload(running, guards={"classifiers": [{"model": "mine", "refuse": ["feline"], "above": 0.8}]})
        refused = _post(running, "/v1/embeddings", "base", ["dog barks dog a", "q cat sleeps cat a"])
        passed = _post(running, "/v1/embeddings", "base", ["dog barks dog a", "q dog barks dog a"])
        command = [*COMMAND, "models", "rm", "mine", "--url", running.url]
        kept = subprocess.run(command, env=environment(classes.home), cwd=tmp_path, capture_output=True, text=True,
                              check=False)  # fmt: skip
        assert kept.returncode != 0
        assert "guards.classifiers[0].model" in kept.stderr
        assert [entry.name for entry in read_added_models(classes.home)] == ["mine"]
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "content_filter")
    assert passed.status_code == 200, passed.text
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["labels"] == ["canine", "feline"]
    assert [one["label"] for one in body["data"]][:2] == ["feline", "canine"]
    np.testing.assert_allclose(
        [one["probs"] for one in body["data"]], _by_transformers(classes.checkpoint, TEXTS), atol=1e-5
    )


def test_again_it_trains_nothing_and_says_what_is_missing(tuned: Classes) -> None:
    """The same command after the end finds the checkpoint. No server runs, so the next one has it; no model has its
    base, so it has no price, and the command says which one sets it. It is its organisation's."""
    done = tuned.run()
    assert done.returncode == 0, done.stderr
    assert "trained before" in done.stderr
    assert "Accuracy" in done.stdout
    assert "the next `interlace serve` has it as mine" in done.stdout
    assert "interlace prices create mine --prompt 0 --embedding" in done.stdout
    (entry,) = read_added_models(tuned.home)
    assert (entry.name, entry.checkpoint, entry.like) == ("mine", "mine", "")
    assert entry.owner.startswith("org_")


def test_texts_become_the_tokens_that_serving_makes_and_long_ones_are_told(tuned: Classes, tmp_path: Path) -> None:
    """A text that is cut, or read otherwise than when it is asked, is learnt as another."""
    from interlace.tuning.classifying import texts_in_tokens
    from interlace.tuning.endings import Ending
    from interlace.tuning.heads import Head
    from interlace.tuning.settings import TuneSettings
    from interlace.tuning.work import Base, Data, Placed, Work

    def work(*texts: str) -> Work:
        placed = [Placed(line, [{"role": "user", "content": text}], "b") for line, text in enumerate(texts, 7)]
        base = Base("tiny", str(tuned.folder / "base"), "", "", 38, {}, None, "")
        data = Data(placed, placed[:1], "t.jsonl", "h.jsonl")
        return Work(str(tmp_path), {}, base, data, {}, 1, head=Head(("a", "b"), fresh=True))

    (row, marked), held_out = texts_in_tokens(work("cat dog", "[SEP] cat"), TuneSettings())
    assert (row.input_ids, row.label) == ([2, WORDS.index("cat"), WORDS.index("dog"), 3], 1)
    assert marked.input_ids.count(3) == 1, "a control token of the text was read as one"
    assert held_out == [row]
    with pytest.raises(Ending) as caught:
        texts_in_tokens(work("cat", "cat " * 40), TuneSettings())
    assert caught.value.message == "t.jsonl:8: text: has 42 tokens, over the 38 that tiny reads. Shorten it."
    with pytest.raises(Ending, match="raise max_tokens"):
        texts_in_tokens(work("cat", "cat " * 20), TuneSettings(max_tokens=16))


def test_a_new_head_learns_at_a_rate_of_its_own() -> None:
    """At the rate of weights that know something, a head that begins at random hardly moves in a run over a few hundred
    texts; a higher rate that was asked for stays, and no weight is lost or learnt twice."""
    import torch

    from interlace.tuning.classifying import _quicken_head

    model = torch.nn.ModuleDict({"bert": torch.nn.Linear(4, 4), "classifier": torch.nn.Linear(4, 2)})
    groups = [{"params": [each]} for each in model.parameters()]
    for rate, head in ((5e-5, 5e-4), (3e-3, 3e-3)):
        optimizer = torch.optim.AdamW([dict(group) for group in groups], lr=rate)
        _quicken_head(optimizer, model)
        rates = {id(each): group["lr"] for group in optimizer.param_groups for each in group["params"]}
        assert rates == {id(each): head if name[0] == "c" else rate for name, each in model.named_parameters()}
        assert sum(len(group["params"]) for group in optimizer.param_groups) == 4
        assert optimizer.param_groups[0]["lr"] == rate


def test_each_text_of_a_pass_counts_once_however_many_share_them() -> None:
    """accelerate fills the last step of a pass up with its first texts, for processes to have as many each: learnt from
    again, they would weigh double, and the losses would not be those of one process."""
    import torch

    from interlace.tuning.classifying import Classifying

    def learnt(rank: int, texts: int, *, last: bool) -> list[int]:
        trainer = object.__new__(Classifying)
        trainer.train_dataset = range(texts)
        trainer.accelerator = SimpleNamespace(
            gradient_state=SimpleNamespace(end_of_dataloader=last), num_processes=2, process_index=rank
        )
        (batch,) = trainer._each_once(iter([{"labels": torch.tensor([5, 6])}]))
        labels: list[int] = batch["labels"].tolist()
        return labels

    assert [learnt(rank, 59, last=True) for rank in (0, 1)] == [[5, 6], [5, -100]]
    assert [learnt(rank, 57, last=True) for rank in (0, 1)] == [[5, -100], [-100, -100]]
    assert [learnt(rank, 57, last=False) for rank in (0, 1)] == [[5, 6], [5, 6]]
    assert [learnt(rank, 60, last=True) for rank in (0, 1)] == [[5, 6], [5, 6]]


# --- other ways of learning ----------------------------------------------------------------------------------------

KNOWN: dict[str, Any] = {
    "family": "roberta", "head": "ForSequenceClassification", "id2label": {0: "other", 1: "feline", 2: "canine"},
}  # fmt: skip


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["bert without a head", "roberta that knows the labels"])
def test_an_adapter_is_merged_into_a_checkpoint(tmp_path: Path, kind: str) -> None:
    """No engine serves an adapter beside an encoder, so what is served is one checkpoint; the base's own head keeps
    its labels in their order, those that no example has too. What was scored is what is stored."""
    classes = Classes(tmp_path, **(KNOWN if "roberta" in kind else {}))
    done = classes.run("--method", "lora", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["merged"] is True
    assert report["parameters"]["trained"] < report["parameters"]["all"]
    assert report["metrics"]["loss_change"]["high"] < 0
    known = "roberta" in kind
    assert report["head"] == ("of the base" if known else "new")
    architecture = read_architecture(classes.checkpoint)
    assert isinstance(architecture, EncoderArchitecture)
    assert architecture.labels == (("other", "feline", "canine") if known else ("canine", "feline"))
    _, held_out = split(read_examples(tmp_path / "train.jsonl", task="classify"), held_out=0.35, seed=1)
    scores = _by_transformers(classes.checkpoint, [row.question for row in held_out.rows])
    sure = [each[architecture.labels.index(row.answer)] for each, row in zip(scores, held_out.rows, strict=True)]
    assert -np.log(sure).mean() == pytest.approx(report["metrics"]["after"]["loss"]["value"], abs=1e-5)


@pytest.mark.nightly
def test_a_private_slice_leaves_the_other_blocks(tmp_path: Path) -> None:
    """Of a base without a head, the blocks that are named and the head alone move, to the last bit."""
    from safetensors.numpy import load_file

    classes = Classes(tmp_path, SETTINGS.replace("epochs: 4", "epochs: 1"))
    done = classes.run("--private", "blocks:1-1")
    assert done.returncode == 0, done.stderr
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path / "base", classes.checkpoint))
    moved = {name for name, values in before.items() if not np.array_equal(values, after[f"bert.{name}"])}
    assert moved
    assert {name.rpartition(".layer.")[2][0] for name in moved if ".layer." in name} == {"1"}
    assert not [name for name in moved if ".layer." not in name and not name.startswith("pooler.")]


@pytest.mark.nightly
def test_killed_it_goes_on_to_the_same_losses(tuned: Classes, tmp_path: Path) -> None:
    """`kill -9` in the middle, and the same command again: losses and weights are the same to the last bit."""
    classes = Classes(tmp_path)
    running = classes.start()
    deadline = time.monotonic() + 100
    while not classes.sealed():
        assert time.monotonic() < deadline
        assert running.poll() is None, running.communicate()
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    with RunFolder(classes.home, "mine", "full").locked("training", 10.0):
        assert classes.sealed()[0] < tuned.report()["steps"]
    done = classes.run()
    assert done.returncode == 0, done.stderr
    assert "Going on at step" in done.stderr
    assert classes.report()["curve"] == tuned.report()["curve"]
    weights = [one.path / "model" / "model.safetensors" for one in (classes, tuned)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
