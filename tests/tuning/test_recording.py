"""Figures of a run in TensorBoard and MLflow: written with the real libraries, read with their own readers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from interlace.errors import ConfigError
from interlace.tuning.events import Held, Step
from interlace.tuning.folder import RunFolder, TuningError, seal, write_whole
from interlace.tuning.recording import Recorder, missing_stores, recording
from interlace.tuning.running import Interrupted
from interlace.tuning.settings import TuneSettings, read_settings, stores_of
from interlace.tuning.work import Base, Data, Work

GIVEN = {"base": "b", "data": "d.jsonl", "name": "mine"}
INTERVAL = {"value": 0.5, "low": 0.0, "high": 1.0}
MANIFEST = {
    "best_step": 4,
    "metrics": {
        "before": {"loss": INTERVAL},
        "after": {"loss": INTERVAL},
        "metric": {"name": "chrf", "before": INTERVAL, "after": INTERVAL | {"value": 0.75}},
    },
}


def _work(home: Path) -> Work:
    base = Base("tiny", "", "", "", 64, {"model.safetensors": "abc"}, "MIT", "")
    return Work(str(home), {}, base, Data([], [], "", ""), {"data/train 1.jsonl": "def"}, 1)


def _step(number: int) -> Step:
    return Step(number, 4, 1.0 / number, 100.0, 0.0, 1 << 20, 0.1 * number)


def _begin(folder: RunFolder) -> None:
    folder.path.mkdir(parents=True, exist_ok=True)


def _checkpoint(folder: RunFolder, step: int) -> None:
    """As a run leaves it that has kept so many steps."""
    place = folder.checkpoints / f"checkpoint-{step}"
    place.mkdir(parents=True)
    history = [{"step": each, "loss": 1.0 / each, "learning_rate": 0.1 * each} for each in range(1, step + 1)]
    write_whole(
        place / "trainer_state.json", {"log_history": [*history[:2], {"step": 2, "eval_loss": 0.5}, *history[2:]]}
    )
    seal(place)


def _cut_off(settings: TuneSettings, folder: RunFolder, events: list[Step | Held]) -> None:
    def run() -> None:
        with recording(settings, _work(folder.path.parent), folder) as recorder:
            for event in events:
                recorder.hear(event)
            raise Interrupted("")

    with pytest.raises(Interrupted):
        run()


def _cut_off_and_gone_on(settings: TuneSettings, home: Path) -> None:
    """The first process tells steps 1 to 3 and dies, before it looks at the held-out examples; the second goes on after
    step 2, and comes to the end."""
    folder = RunFolder(home, "mine")
    _begin(folder)
    _cut_off(settings, folder, [_step(1), _step(2), Held(2, 0.5, best=True), _step(3)])
    _checkpoint(folder, 2)
    folder.result.mkdir()
    write_whole(folder.result / "manifest.json", MANIFEST)
    with recording(settings, _work(home), folder) as recorder:
        for event in (_step(3), Held(3, 0.75, best=False), _step(4), Held(4, 0.25, best=True)):
            recorder.hear(event)


def test_tensorboard_has_each_step_once(tmp_path: Path) -> None:
    """Also where more was told than the checkpoint knew when the run was cut off."""
    pytest.importorskip("tensorboardX", reason="pip install 'interlace[tensorboard]'")
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="pip install tensorboard"
    )
    _cut_off_and_gone_on(read_settings(None, {**GIVEN, "log_to": "tensorboard"}), tmp_path)
    read = events.EventAccumulator(str(tmp_path / "tuning" / "mine" / "tensorboard"))
    read.Reload()
    assert [one.step for one in read.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [(one.step, one.value) for one in read.Scalars("held_out/loss")] == [(2, 0.5), (3, 0.75), (4, 0.25)]
    assert [(one.step, one.value) for one in read.Scalars("score/chrf")] == [(0, 0.5), (4, 0.75)]


def test_tensorboard_catches_up_from_the_checkpoint(tmp_path: Path) -> None:
    """Steps that were learnt before the store was asked for, or that were lost with the process, are there too."""
    pytest.importorskip("tensorboardX", reason="pip install 'interlace[tensorboard]'")
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="pip install tensorboard"
    )
    folder = RunFolder(tmp_path, "mine")
    _begin(folder)
    _checkpoint(folder, 3)
    settings = read_settings(None, {**GIVEN, "log_to": "tensorboard"})
    _cut_off(settings, folder, [_step(4)])
    read = events.EventAccumulator(str(folder.path / "tensorboard"))
    read.Reload()
    assert [one.step for one in read.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [one.step for one in read.Scalars("held_out/loss")] == [2]


MLFLOW = """
import os, sys, time
from pathlib import Path
asked = []
def watch(event, arguments):
    if event == "socket.getaddrinfo" or (event == "socket.connect" and isinstance(arguments[1], tuple)):
        asked.append(arguments[:2])
        raise OSError("there is no network")
sys.addaudithook(watch)
sys.path.insert(0, sys.argv[2])
from tests.tuning.test_recording import GIVEN, _cut_off_and_gone_on
from interlace.tuning.settings import read_settings
_cut_off_and_gone_on(read_settings(None, {**GIVEN, "log_to": "mlflow", "rank": "8"}), Path(sys.argv[1]))
time.sleep(1)  # what is sent home is sent from a thread
print(asked)
from mlflow.tracking import MlflowClient
client = MlflowClient(tracking_uri="sqlite:///" + sys.argv[1] + "/tuning/mlflow.db")
(run,) = client.search_runs([client.get_experiment_by_name("interlace tune").experiment_id])
print(run.info.run_name, run.info.status, run.data.params["rank"], run.data.tags["data.sha256.data/train_1.jsonl"])
for name in ("train/loss", "train/learning_rate", "held_out/loss", "score/chrf"):
    print(name, [(one.step, round(one.value, 3)) for one in client.get_metric_history(run.info.run_id, name)])
"""


def test_mlflow_has_one_run_with_each_step_once(tmp_path: Path) -> None:
    """Read with its own client: one run, with the end it had, settings as parameters and digests as tags; and without a
    server named, nothing leaves the machine, not even how MLflow is used."""
    pytest.importorskip("mlflow", reason="pip install 'interlace[mlflow]'")
    root = Path(__file__).parents[2]
    ours = ("MLFLOW_", "PYTEST_", "CI", "DO_NOT_TRACK")  # under tests and in CI, MLflow is quiet by itself
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(
        [sys.executable, "-c", MLFLOW, str(tmp_path), str(root)], env=environment, cwd=tmp_path, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "[]",
        "mine FINISHED 8 def",
        "train/loss [(1, 1.0), (2, 0.5), (3, 0.333), (4, 0.25)]",
        "train/learning_rate [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]",
        "held_out/loss [(2, 0.5), (3, 0.75), (4, 0.25)]",
        "score/chrf [(0, 0.5), (4, 0.75)]",
    ]


def test_a_server_of_mlflow_that_is_not_there_is_told_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after hours, and with the mend."""
    pytest.importorskip("mlflow", reason="pip install 'interlace[mlflow]'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    folder = RunFolder(tmp_path, "mine")
    _begin(folder)
    settings = read_settings(None, {**GIVEN, "log_to": "mlflow"})
    with (
        pytest.raises(TuningError, match=r"log_to: mlflow cannot be had: .* leave mlflow out of log_to"),
        recording(settings, _work(tmp_path), folder),
    ):
        pass


class Failing:
    """A store whose disk is full from the second step on."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def last(self, name: str) -> int:
        """It has nothing."""
        return 0

    def put(self, figures: Mapping[str, float], step: int) -> None:
        """As its library would."""
        if step == 2:
            raise OSError(28, "No space left on device")
        self.steps.append(step)

    def end(self, how: str) -> None:
        """Never: it is given up."""
        raise AssertionError


def test_a_store_that_fails_ends_no_training(capsys: pytest.CaptureFixture[str]) -> None:
    """It is given up, once and with a word: a run of hours is worth more than its picture."""
    store = Failing()
    recorder = Recorder({"mlflow": store})
    for number in (1, 2, 3):
        recorder.hear(_step(number))
    recorder.end("FINISHED")
    assert store.steps == [1]
    assert capsys.readouterr().err == (
        "Warning: mlflow is given up, the training goes on: [Errno 28] No space left on device\n"
    )


@pytest.mark.parametrize("secret", ["s3cret", "s3/cr@et", "s3cret" * 100])
def test_a_password_in_the_address_of_a_store_is_not_told(secret: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A library may repeat the address that it could not reach, and what the command says ends up in logs."""

    class Away(Failing):
        def put(self, figures: Mapping[str, float], step: int) -> None:
            raise OSError(f"cannot reach https://user:{secret}@store.example/api: refused")

    Recorder({"mlflow": Away()}).hear(_step(1))
    said = capsys.readouterr().err
    assert "cannot reach https://store.example/api: refused" in said
    assert not any(part in said for part in ("user", "s3", "cret"))


@pytest.mark.parametrize(
    ("said", "stores"),
    [("tensorboard", ["tensorboard"]), ("mlflow, tensorboard,mlflow", ["mlflow", "tensorboard"]), ("", [])],
)
def test_stores_are_named_on_the_command_line(said: str, stores: list[str]) -> None:
    """With commas between; none where nothing is said: figures are the organisation's own."""
    assert stores_of(read_settings(None, {**GIVEN, "log_to": said})) == stores


def test_stores_are_a_list_in_a_yaml(tmp_path: Path) -> None:
    """As people write lists; a setting that is one value takes none."""
    (tmp_path / "tune.yaml").write_text("log_to: [tensorboard, mlflow]\ntargets: [q_proj, v_proj]\n")
    settings = read_settings(tmp_path / "tune.yaml", GIVEN)
    assert stores_of(settings) == ["tensorboard", "mlflow"]
    assert settings.targets == "q_proj,v_proj"
    (tmp_path / "tune.yaml").write_text("metric: [bleu]\nlog_to: wandb\n")
    with pytest.raises(ConfigError) as caught:
        read_settings(tmp_path / "tune.yaml", GIVEN)
    assert "metric: is not text" in caught.value.message
    assert "log_to: 'wandb' is none. There are: tensorboard, mlflow." in caught.value.message


def test_what_is_not_installed_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is trained."""
    found: Any = lambda name: None  # noqa: E731
    monkeypatch.setattr("importlib.util.find_spec", found)
    said = missing_stores(read_settings(None, {**GIVEN, "log_to": "tensorboard,mlflow"}))
    assert said.endswith("pip install 'interlace[tensorboard,mlflow]'")
    assert missing_stores(read_settings(None, GIVEN)) == ""
