"""One run with everything beside the training: data of the Hub, a metric of texts, figures kept elsewhere; cut off once
and gone on with."""

from __future__ import annotations

import json
import subprocess
import time

import pytest

from interlace.tuning.folder import RunFolder
from tests.support.file_server import file_server, put_hub_data_set
from tests.support.serving import environment
from tests.support.tuned import SETTINGS, Tuning, chats, needs_parts

pytestmark = needs_parts

WITH = ", metric: token_f1, log_to: [tensorboard], held_out_split: test, data: 'hub:org/talks'}"
COMMIT = "d" * 40


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Tuning:
    """The command was killed after its first checkpoint, and went on without the Hub to the end."""
    pytest.importorskip("tensorboardX", reason="pip install 'interlace[tensorboard]'")
    settings = SETTINGS.replace("epochs: 4", "epochs: 2").replace("}", WITH)
    tuning = Tuning(tmp_path_factory.mktemp("kept"), settings)
    lines = chats(44).splitlines(keepends=True)
    files = {"train.jsonl": "".join(lines[:36]).encode(), "test.jsonl": "".join(lines[36:]).encode()}
    command = [word for word in tuning.command() if word not in ("--data", "train.jsonl")]
    with file_server() as hub:
        put_hub_data_set(hub, "org/talks", files, {"license": "cc-by-4.0"})
        at = environment(tuning.home) | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
        running = subprocess.Popen(
            command, cwd=tuning.folder, env=at, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + 100
        while not tuning.sealed():
            assert time.monotonic() < deadline
            assert running.poll() is None, running.communicate()
            time.sleep(0.02)
        running.kill()
        running.communicate()
    with RunFolder(tuning.home, "mine").locked("training", 10.0):
        pass
    done = subprocess.run(
        [*command, "--data", f"hub:org/talks@{COMMIT}"], cwd=tuning.folder, env=at | {"HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Going on at step" in done.stderr
    (tuning.folder / "said").write_text(done.stdout)
    return tuning


def test_the_manifest_says_which_data_of_the_hub_it_was(kept: Tuning) -> None:
    """Commit, split, digest and the licence of the card; else nobody could have them again, or know what they allow."""
    data = json.loads((kept.path / "adapter" / "manifest.json").read_text())["data"]
    where = {"repo": "org/talks", "commit": COMMIT, "config": ""}
    assert data["hub"] == {"data": where | {"split": "train"}, "held_out_data": where | {"split": "test"}}
    assert set(data["files"]) == {"train.jsonl", "test.jsonl"}
    assert (data["licence"], data["source"]) == ("CC-BY-4.0", f"hub:org/talks@{COMMIT}")
    assert (data["examples"], data["held_out"]) == (36, 8)


def test_the_metric_is_named_wherever_it_stands(kept: Tuning) -> None:
    """In the report, the manifest, the picture and the last words; and the answers that it is of lie beside them."""
    found = kept.report()["metrics"]["metric"]
    assert (found["name"], found["unit"]) == ("token_f1", "share")
    assert found["change"]["value"] == pytest.approx(found["after"]["value"] - found["before"]["value"])
    answers = [json.loads(line) for line in (kept.path / "answers.jsonl").read_text().splitlines()]
    right = sum(row["after"] == row["wanted"] for row in answers) / len(answers)
    assert found["after"]["value"] == pytest.approx(right)  # each answer is one word
    assert any(row["before"] != row["after"] for row in answers)
    assert "Token F1: " in (kept.path / "loss.svg").read_text()
    assert "Token F1: " in (kept.folder / "said").read_text()


def test_tensorboard_reads_each_step_once(kept: Tuning) -> None:
    """With its own reader: no step is doubled or left out where the run was cut off, the figures are those of the
    report, and settings and digests stand beside them."""
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(kept.path / "tensorboard"))
    read.Reload()
    report = kept.report()
    for name, curve in (("train/loss", "train"), ("held_out/loss", "held_out")):
        found = [(one.step, one.value) for one in read.Scalars(name)]
        assert [step for step, _ in found] == [step for step, _ in report["curve"][curve]], name
        assert [value for _, value in found] == pytest.approx([value for _, value in report["curve"][curve]]), name
    rates = [one.value for one in read.Scalars("train/learning_rate")]
    assert len(rates) == report["steps"]
    assert max(rates) == pytest.approx(0.01)
    assert read.Scalars("train/tokens_per_second")
    scores = [(one.step, one.value) for one in read.Scalars("score/token_f1")]
    metric = report["metrics"]["metric"]
    assert scores == [
        (0, pytest.approx(metric["before"]["value"])), (report["best_step"], pytest.approx(metric["after"]["value"]))
    ]  # fmt: skip
    settings, about = (read.Tensors(f"{name}/text_summary")[0] for name in ("settings", "about"))
    assert b"| rank | 4 |" in settings.tensor_proto.string_val[0]
    assert report["data"]["files"]["train.jsonl"].encode() in about.tensor_proto.string_val[0]
