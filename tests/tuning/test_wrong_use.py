"""`interlace tune` used wrongly: what is told names the option as it was typed, or the YAML's line and field, with the
mend; the exit code is 2, nothing is trained, and nothing is written."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from interlace.cli import main
from interlace.cli.tune import tune
from interlace.errors import ConfigError
from interlace.tuning.said import OPTIONS
from interlace.tuning.settings import SETTINGS, read_run, read_settings, told
from tests.support.serving import environment, free_port
from tests.support.tiny import tiny_llama_safetensors
from tests.support.tuned import SETTINGS as QUICK
from tests.support.tuned import Tuning, chats, needs_parts

pytestmark = needs_parts

Run = Callable[..., tuple[int, str]]
LONG = "x" * 300


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, and with data and settings that are sound."""
    folder = tmp_path_factory.mktemp("wrong")
    tiny_llama_safetensors(folder / "base")
    (folder / "train.jsonl").write_text(chats())
    (folder / "copy.jsonl").symlink_to("train.jsonl")
    (folder / "utf16.jsonl").write_text(chats(), encoding="utf-16")
    (folder / "latin.jsonl").write_bytes(b'{"prompt": "caf\xe9", "completion": "b"}\n')
    (folder / "empty.jsonl").touch()
    os.mkfifo(folder / "pipe.jsonl")
    (folder / "train.txt").write_text(chats())
    (folder / "train.jsonl.gz").write_bytes(b"\x1f\x8b\x08")
    (folder / "tune.yaml").write_text(QUICK)
    (folder / "taken").write_text("a file")
    return folder


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """The command with these words: its exit code, and what it told. Fails where anything was written but locks and the
    ledger, which is made when it is first asked."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("INTERLACE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("INTERLACE_PORT", str(free_port()))
    before = sorted(place.rglob("*"))

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["interlace", "tune", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert said.out == ""
        assert "Traceback" not in said.err
        runs = [path for path in tmp_path.glob("home/tuning/*") if path.name != ".locks"]
        assert runs == []
        assert sorted(place.rglob("*")) == before
        return int(ended.value.code or 0), said.err

    return run


def _sound(**others: str) -> list[str]:
    """The words of a sound command, with others in place of some."""
    words = {"base": "./base", "data": "train.jsonl", "name": "mine", "config": "tune.yaml", **others}
    return [word for name, value in words.items() for word in (f"--{name.replace('_', '-')}", value)]


# --- each option --------------------------------------------------------------------------------------------------

WRONG: dict[str, list[tuple[str, str]]] = {
    "--base": [
        ("nosuch", "There is no checkpoint nosuch"),
        ("smollm2-135m-instuct", "Did you mean smollm2-135m-instruct?"),
        ("hf:HuggingFaceTB/SmolLM2-135M", "interlace pull hf:HuggingFaceTB/SmolLM2-135M"),
        ("HuggingFaceTB/SmolLM2-135M", "interlace pull hf:HuggingFaceTB/SmolLM2-135M"),
        ("./nosuch", "does not exist. Give a GGUF file or a folder"),
        (f"./{LONG}", "File name too long"),
        ("train.jsonl", "is not a GGUF file"),
        ("", "is empty. The checkpoint to train on"),
    ],
    "--data": [
        ("nosuch.jsonl", "nosuch.jsonl: there is no such file. Check the path"),
        ("base", "this is a folder. Name one file in it"),
        ("utf16.jsonl", "this is UTF-16, not UTF-8. Convert it: iconv"),
        ("empty.jsonl", "the file is empty"),
        ("train.txt", "the format of .txt is unknown"),
        ("train.jsonl.gz", "the format of .gz is unknown"),
        (f"{LONG}.jsonl", "File name too long"),
        ("pipe.jsonl", "this is a pipe or a device, and is read twice. Write the examples to a file first"),
        ("/dev/null", "this is a pipe or a device"),
        ("caf\udce9.jsonl", "is not UTF-8. Write it in UTF-8"),
        ("hub:nosuch", "Write hub:OWNER/NAME"),
        ("", "is empty. The examples to learn from"),
    ],
    "--columns": [
        ("question=prompt", "Our name stands first: prompt=question"),
        ("text=a,label=b", "text and label are of task classify, not chat"),
        ("prompt", "Write such as prompt=question,completion=answer"),
    ],
    "--name": [
        ("a/b", "cannot be a name. Write 1 to 64 letters"),
        ("../x", "cannot be a name"),
        (".hidden", "a letter or digit first"),
        ("x" * 65, "1 to 64"),
        ("", "is empty. What the result is called"),
    ],
    "--config": [
        ("nosuch.yaml", "No such file or directory. Check path and permissions"),
        ("base", "is a folder. Name the YAML in it"),
        ("utf16.jsonl", "this is UTF-16, not UTF-8. Convert it: iconv"),
        ("train.jsonl.gz", "data are named with --data"),
        ("", "is empty. Name a YAML"),
    ],
    "--held-out": [
        ("nosuch.jsonl", "nosuch.jsonl: there is no such file"),
        ("base", "this is a folder"),
        ("0.2", "is 0.2, which is no file. For a share, write in the YAML: held_out: 0.2"),
        ("./base/../train.jsonl", "is the file to learn from. Give another"),
        ("copy.jsonl", "is the file to learn from"),
    ],
    "--owner": [
        ("nobody", "There is no organisation 'nobody'. Make it first: interlace orgs create NAME"),
        ("a/b", "There is no organisation 'a/b'"),
        ("x" * 129, "has 129 characters, and can have 128"),
        ("", "is empty. Name an organisation"),
    ],
    "--licence": [("x" * 201, "has 201 characters, and can have 200"), ("caf\udce9", "is not UTF-8")],
    "--source": [("x" * 2001, "has 2,001 characters, and can have 2,000"), ("caf\udce9", "is not UTF-8")],
    "--epochs": [("0", "Write a number from 0.01 to 1000"), ("nan", "Write a number"), ("many", "valid number")],
    "--seed": [("-1", "Write a number from 0 to 2147483648"), ("99999999999", "from 0 to"), ("1.5", "valid integer")],
    "--threads": [("-3", "Write a number from 0 to 1024"), ("5000", "is 5000."), ("all", "valid integer")],
    "--task": [("Classify", "Write chat or classify"), ("", "Write chat or classify")],
    "--method": [("qlora", "is 'qlora'. Write lora or full"), ("", "Write lora or full")],
    "--private": [
        ("24-29", "Write blocks:24-29 or blocks:24-29+head"),
        ("blocks:3", "Write blocks:24-29"),
    ],
    "--metric": [("rouge", "Did you mean rouge_l?"), ("", "There are: exact_match")],
    "--log-to": [("wandb", "There are: tensorboard, mlflow"), ("tensorboard,wandb", "'wandb' is none")],
    "--machine-rank": [
        ("1", "is for several machines, but machines is 1"),
        ("-1", "Write a number from 0 to 4095"),
        ("first", "valid integer"),
    ],
    "--url": [
        ("http://127.0.0.1:9", "No server answers at http://127.0.0.1:9. Start it, or leave --url out"),
        ("127.0.0.1:9", "'127.0.0.1:9' is no server's address. Write one like http://127.0.0.1:8080"),
    ],
    "--home": [("taken", "taken is no folder"), ("taken/below", "taken is no folder. Name another")],
}


@pytest.mark.parametrize(
    ("option", "value", "said"), [(option, *row) for option, rows in WRONG.items() for row in rows]
)
def test_a_wrong_value_is_told_by_the_option_as_it_was_typed(run: Run, option: str, value: str, said: str) -> None:
    """Else a person looks for `held_out_data` or `machine_rank`, which they never wrote."""
    code, told = run(*_sound(**{option[2:].replace("-", "_"): value}))
    assert code == 2, told
    message = next(line for line in told.splitlines() if line.startswith("Error: "))
    assert message.startswith((f"Error: {option}: ", f"Error: Invalid value for '{option}'")), told
    assert said in message


def test_every_option_was_tried() -> None:
    """A new option would else be told by the name that the code has for it. A key is told by the server."""
    parameters = inspect.signature(tune).parameters.values()
    options = {f"--{each.name.replace('_', '-')}" for each in parameters if "bool" not in str(each.annotation)}
    assert options - {"--context", "--key", "--as-json"} == set(WRONG)
    of_settings = {name: f"--{name.replace('_', '-')}" for name in SETTINGS} | {"held_out_data": "--held-out"}
    assert {name: option for name, option in of_settings.items() if option in options and name != "held_out"} == OPTIONS


# --- each setting of the YAML -------------------------------------------------------------------------------------

WRONG_IN_YAML = {
    "base": "nosuch", "data": "nosuch.jsonl", "data_config": "x", "data_split": "x", "held_out_split": "x",
    "columns": "x", "name": "a/b", "task": "x", "labels": "x", "owner": "nobody", "held_out": "0.9",
    "held_out_data": "nosuch.jsonl", "licence": "x" * 201, "source": "x" * 2001, "method": "x", "private": "x",
    "epochs": "0", "batch": "0", "rows_at_once": "-1", "max_tokens": "7", "packing": "perhaps", "learning_rate": "2",
    "warmup": "1", "rank": "0", "alpha": "0", "dropout": "1", "targets": "{a: b}", "evaluate_every": "-1",
    "patience": "-1", "metric": "x", "metric_pattern": "(", "precision": "fp16", "seed": "-1", "threads": "-1",
    "launcher": "slurm", "processes": "0", "zero_stage": "4", "offload": "disk", "machines": "0", "machine_rank": "-1",
    "main_address": "{a: b}", "main_port": "0", "join_seconds": "0", "log_to": "wandb", "nice": "20",
    "secrets": "tell",
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_a_wrong_setting_of_the_yaml_is_told_by_line_and_field(
    run: Run, place: Path, tmp_path: Path, name: str
) -> None:
    """And not by an option that nobody typed, though there is one."""
    needed = {"base": str(place / "base"), "data": str(place / "train.jsonl"), "name": "mine"}
    lines = ["# a run", *(f"{each}: {value}" for each, value in needed.items() if each != name)]
    (tmp_path / "run.yaml").write_text("\n".join([*lines, f"{name}: {WRONG_IN_YAML[name]}"]) + "\n")
    code, told = run("--config", str(tmp_path / "run.yaml"))
    assert code == 2, told
    assert f"{tmp_path / 'run.yaml'}:{len(lines) + 1}: {name}: " in told
    assert f"{OPTIONS.get(name, '--' + name)}: " not in told


def test_what_is_on_both_is_told_as_it_was_typed(run: Run, place: Path, tmp_path: Path) -> None:
    """The command line beats the file, so there it is to be mended; what it leaves out is told by the file."""
    (tmp_path / "run.yaml").write_text("seed: 3\nmethod: lora\nprecision: f16\n")
    code, told = run(*_sound(config=str(tmp_path / "run.yaml"), seed="-1", private="blocks:0-0"))
    assert code == 2
    assert [line.partition("run.yaml:")[2] or line for line in told.splitlines()] == [
        "Error: --seed: is -1. Write a number from 0 to 2147483648.",
        "3: precision: is 'f16'. Write f32, bf16 or auto.",
        "--private: is for method full, which makes a checkpoint. Write method: full.",
    ]


# --- what a stranger does -----------------------------------------------------------------------------------------

STRANGE: dict[str, tuple[list[str], list[str]]] = {
    "a setting that is no option": (
        ["--learning-rate", "0.1"],
        ["--learning-rate: is no option. It is a setting of the YAML", "Write there: learning_rate: 0.1"],
    ),
    "of another trainer": (
        ["--lr=0.1", "--lora_r", "8", "--num-train-epochs", "2"],
        [
            "--lr: is no option. It is a setting of the YAML",
            "Write there: learning_rate: 0.1",
            "Write there: rank: 8",
            "--num-train-epochs: is no option. Did you mean --epochs?",
        ],
    ),
    "a near miss": (["--epoch", "3"], ["--epoch: is no option. Did you mean --epochs?"]),
    "another near miss": (["--held-out-data", "x.jsonl"], ["--held-out-data: is no option. Did you mean --held-out?"]),
    "a flag's near miss": (["--frehs"], ["--frehs: is no option. Did you mean --fresh?"]),
    "a negative value": (["--warmup", "-1"], ["--warmup: is no option.", "Write there: warmup: -1"]),
    "resume": (["--resume"], ["--resume: is no option. Nothing need be said: the same command goes on"]),
    "output": (["--output-dir", "out"], ["What is made lies in the home folder, --home, by its --name"]),
    "no such thing": (["--wibble"], ["--wibble: is no option. See what there is: interlace tune --help"]),
    "data without an option": (["more.jsonl"], ["'more.jsonl' belongs to no option. Data: --data more.jsonl"]),
    "settings without an option": (["tune.yaml"], ["Settings: --config tune.yaml"]),
    "two files": (["--data", "more.jsonl"], ["--data: is there 2 times. Put the examples into one file."]),
    "columns one by one": (
        ["--columns", "prompt=a", "--columns", "completion=b"],
        ["--columns: is there 2 times. Write one, with commas between."],
    ),
    "words without quotes": (["--source", "our", "advisers"], ["'advisers' belongs to no option. What has spaces"]),
    "captured without its pattern": (
        ["--metric", "captured"],
        ["tune.yaml: metric_pattern: is missing, which metric captured needs. Write in the YAML"],
    ),
    "a slice and an adapter": (
        ["--private", "blocks:0-1", "--method", "lora"],
        ["--private: is for method full, which makes a checkpoint. Write --method full."],
    ),
    "a classifier of a model that chats": (["--task", "classify"], ["--base: base makes text"]),
    "a slice with a classifier's head": (
        ["--task", "classify", "--private", "blocks:0-1+head"],
        ["--private: a classifier's head is learnt in any case. Write the blocks alone"],
    ),
    "a metric of a classifier": (["--task", "classify", "--metric", "bleu"], ["--metric: is for answers."]),
    "a file that is no UTF-8": (
        ["--held-out", "latin.jsonl"],
        ["latin.jsonl:1: byte 16 of the line (0xe9) is not UTF-8"],
    ),
    "data for settings": (
        ["--config", "train.jsonl"],
        ["train.jsonl:2: this is no YAML", "Is it the data? Name those"],
    ),
}


@pytest.mark.parametrize("what", STRANGE)
def test_a_stranger_is_told_what_was_meant(run: Run, what: str) -> None:
    """Most settings have no option, and other trainers call them otherwise: who types one is shown where it goes."""
    words, said = STRANGE[what]
    code, told = run(*_sound(), *words)
    assert code == 2, told
    assert [each for each in said if each not in told] == [], told


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv, which binds root by rights, is not here")
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("train.jsonl", "--data: train.jsonl: the file cannot be read (Permission denied). Check its permissions"),
        ("tune.yaml", "--config: tune.yaml cannot be read: Permission denied."),
        ("base", "--base: ./base cannot be read: Permission denied."),
        ("base/model.safetensors", "--base: model.safetensors cannot be read: Permission denied."),
        ("home", "/home may not be written. Mind its rights, or name another with --home."),
        ("home/tuning", "/home/tuning/.locks: Permission denied. Mind its space and rights; --home names another"),
    ],
)
def test_what_may_not_be_read_or_written_is_told(tmp_path: Path, what: str, said: str) -> None:
    """As a plain user, whom rights bind: a stack trace would name neither the option nor the folder."""
    tuning = Tuning(tmp_path)
    place = tmp_path / what
    if what == "home/tuning":
        place.mkdir()
    mode = place.stat().st_mode
    place.chmod(0o555 if what == "home" else 0)
    bound = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    try:
        done = subprocess.run(
            [*bound, *tuning.command()], cwd=tmp_path, env=environment(tuning.home), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False, timeout=100,
        )  # fmt: skip
    finally:
        place.chmod(mode)
    assert done.returncode == (1 if what == "home/tuning" else 2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


IN_YAML: dict[str, tuple[str, str]] = {
    "the server's": ("models: []", ":1: models: is no setting of a run, but one of the server's interlace.yaml"),
    "another trainer's": ("per_device_train_batch_size: 4", "Did you mean batch?"),
    "a list for a number": ("batch: [1, 2]", ":1: batch: is not a whole number"),
    "a list for the launcher": ("launcher: [ddp]", ":1: launcher: is not text. Write such as ddp, or a block"),
    "a mapping for names": ("targets: {a: b}", "Write names with commas between, or a list of them"),
    "a near miss in the block": ("launcher: {kind: ddp, procesess: 2}", ":1: launcher.procesess: is no setting. Did "),
    "what a file lacks": ("launcher: {kind: ddp, machines: 2}", "run.yaml: main_address: is missing"),
    "a batch for too many": ("launcher: {kind: ddp, processes: 3}", "run.yaml: batch: is 4, which 3 processes"),
    "a split of a file": ("data_split: test", ":1: data_split: is for a data set on the Hub, and d.jsonl is a file"),
    "a percentage": ("held_out: 10%", ":1: held_out: is not a number but '10%'"),
    "Latin-1": ("source: caf\udce9", ":1: byte 0xe9 is not UTF-8. Save the file in UTF-8"),
    "half a line": ("epochs 3", ":1: this is no list of settings. Write lines such as `epochs: 3`"),
    "code": ("!!python/object/apply:os.system [id]", "this is no list of settings"),
    "a control character": ('source: "a\x01b"', "this is no YAML: "),
    "two documents": ("epochs: 1\n---\nepochs: 2", "expected a single document in the stream"),
}  # fmt: skip


@pytest.mark.parametrize("what", IN_YAML)
def test_a_strange_yaml_is_told_with_its_place(tmp_path: Path, what: str) -> None:
    """Before anything is loaded."""
    text, said = IN_YAML[what]
    (tmp_path / "run.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError) as caught:
        read_settings(tmp_path / "run.yaml", {"base": "b", "data": "d.jsonl", "name": "n"})
    assert said in caught.value.message


def test_a_yaml_from_a_pipe_is_read_once(tmp_path: Path) -> None:
    """`--config <(...)`: read again for its lines, it would be empty."""
    os.mkfifo(tmp_path / "run.yaml")
    writing = threading.Thread(target=(tmp_path / "run.yaml").write_text, args=("epochs: 2\n",), daemon=True)
    writing.start()
    settings, said = read_run(tmp_path / "run.yaml", {"base": "b", "data": "d.jsonl", "name": "n"})
    assert settings.epochs == 2
    assert told("epochs: is 2", said) == f"{tmp_path / 'run.yaml'}:1: epochs: is 2"
