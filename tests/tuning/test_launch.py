"""The launcher's block of a run: what is refused, what processes and DeepSpeed are told, what the plan makes of it."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from interlace.errors import ConfigError
from interlace.tuning.hardware import Hardware
from interlace.tuning.launch import OFFLOADS, deepspeed_config, environment_here, environments
from interlace.tuning.plan_table import plan_table
from interlace.tuning.planning import plan_of, share_of
from interlace.tuning.settings import TuneSettings, read_settings, rows_together
from tests.support.tiny import tiny_llama_safetensors
from tests.support.tuned import needs_parts

GIVEN = {"base": "b", "data": "d", "name": "n"}
MACHINES = "machines: 2, main_address: a.example"


def _read(folder: Path, block: str, **more: Any) -> TuneSettings:
    file = folder / "tune.yaml"
    file.write_text(f"launcher: {block}\n")
    return read_settings(file, GIVEN | more)


def test_the_block_is_read_and_the_command_line_beats_it(tmp_path: Path) -> None:
    """The same file serves every machine: only --machine-rank differs."""
    block = f"{{kind: deepspeed, zero_stage: 3, processes: 2, {MACHINES}, main_port: 4000}}"
    settings = _read(tmp_path, block, machine_rank=1)
    assert (settings.launcher, settings.zero_stage, settings.processes) == ("deepspeed", 3, 2)
    assert (settings.machines, settings.machine_rank, settings.main_port) == (2, 1, 4000)
    assert _read(tmp_path, "ddp\nprocesses: 2").processes == 2  # without a block


WRONG = {
    "{kind: slurm}": ("launcher: is 'slurm'", "Write single, ddp, fsdp2 or deepspeed"),
    "{kind: ddp}": ("processes: is 1 with the launcher ddp", "Write 1 with single, more"),
    "{processes: 2}": ("processes: is 2 with the launcher single", "with ddp, fsdp2 or deepspeed"),
    "{kind: ddp, processes: 3}": ("batch: is 4, which 3 processes cannot share", "a multiple of 3"),
    "{kind: ddp, processes: 2, zero_stage: 2}": ("zero_stage: is for the launcher deepspeed", "Leave it out"),
    "{kind: deepspeed, processes: 2, zero_stage: 4}": ("zero_stage: is 4", "Write a number from 1 to 3"),
    "{kind: deepspeed, processes: 2, offload: disk}": ("offload: is 'disk'", "none, optimizer or all"),
    "{kind: deepspeed, processes: 2, offload: all}": ("offload: is all", "zero_stage: 3"),
    "{kind: ddp, machines: 2}": ("main_address: is missing", "machine_rank 0"),
    "{kind: ddp, machines: 2, main_address: 'tcp://a:1'}": ("main_address: 'tcp://a:1'", "without a port"),
    f"{{kind: ddp, {MACHINES}, machine_rank: 2}}": ("machine_rank: is 2 of 2", "write 0 to 1"),
    f"{{kind: ddp, {MACHINES}, main_port: 70000}}": ("main_port: is 70000", "from 1 to 65535"),
    "{kind: single, machines: 2, main_address: a}": ("machines: is 2 with the launcher single", "Write ddp"),
    "{kind: ddp, processes: 2, machine_rank: 1}": ("machine_rank: is for several machines", "Leave it out"),
    "{kind: ddp, processes: 2, epochs: 3}": ("launcher.epochs: is no setting", "kind, processes"),
    "{kind: ddp, processes: 2}\nprocesses: 4": ("processes: is there twice", "Keep one"),
}


@pytest.mark.parametrize("block", WRONG, ids=range(len(WRONG)))
def test_a_wrong_block_is_told_with_field_and_mend(block: str, tmp_path: Path) -> None:
    """On a cluster, a mistake that is found late costs the hours of all machines."""
    with pytest.raises(ConfigError) as told:
        _read(tmp_path, block)
    for words in WRONG[block]:
        assert words in str(told.value)


def test_each_process_has_its_own_place() -> None:
    """Two processes with one rank would wait for the others for ever; machines must agree on where they meet."""
    settings = TuneSettings(launcher="ddp", processes=2, machines=3, main_address="a.example", main_port=4000)
    ranks = []
    for machine in range(3):
        said = environments(dataclasses.asdict(dataclasses.replace(settings, machine_rank=machine)), 4, together=True)
        ranks += [int(one["RANK"]) for one in said]
        assert [one["LOCAL_RANK"] for one in said] == ["0", "1"]
        assert {(one["MASTER_ADDR"], one["MASTER_PORT"], one["WORLD_SIZE"]) for one in said} == {
            ("a.example", "4000", "6")
        }
    assert ranks == list(range(6))
    (alone,) = environments(dataclasses.asdict(settings), 4, together=False)
    assert "RANK" not in alone
    assert alone["OMP_NUM_THREADS"] == "8"


@needs_parts
def test_rows_of_new_lengths_take_no_more_memory() -> None:
    """What oneDNN and torch keep for each length that they have seen came to 0.8 GB in a run of an hour."""
    script = (
        "import sys, psutil, torch\n"
        "w = torch.randn(512, 512, dtype=torch.bfloat16)\n"
        "for length in range(100, 220):\n"
        "    x = torch.randn(length, 512, dtype=torch.bfloat16, requires_grad=True)\n"
        "    torch.nn.functional.linear(x, w).sum().backward()\n"
        "    if length in (139, 219): print(psutil.Process().memory_info().rss)\n"
    )
    (ours,) = environments(dataclasses.asdict(TuneSettings()), 1, together=False)
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | ours, capture_output=True, text=True, check=True, timeout=100
    )
    then, now = map(int, done.stdout.split())
    assert now - then < 20 << 20


def test_what_another_launcher_says_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pod of Kubernetes's PyTorchJob, or under torchrun, a single process would wait for others; the rest of the
    environment stays."""
    theirs = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK",
              "TORCHELASTIC_RUN_ID", "ACCELERATE_USE_FSDP", "OMPI_COMM_WORLD_RANK", "PMI_SIZE")  # fmt: skip
    for name in (*theirs, "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "MY_RANK"):
        monkeypatch.setenv(name, "3")
    here = environment_here()
    assert not set(theirs) & set(here)
    assert here["GLOO_SOCKET_IFNAME"] == here["NCCL_SOCKET_IFNAME"] == here["MY_RANK"] == "3"
    assert here["PATH"]


def test_the_plan_counts_the_devices_of_all_machines(tmp_path: Path) -> None:
    """A plan for one device says that a model which eight can hold is too large; the launcher's stage is marked."""
    tiny_llama_safetensors(tmp_path)
    settings = TuneSettings(
        base="b", method="full", launcher="deepspeed", zero_stage=3, processes=4, machines=2, main_address="a"
    )
    here = Hardware("here", "this machine", 1 << 30, 1e9, 2e9)
    planned = plan_of(tmp_path, settings, 1000, [share_of(here, 4)])
    assert planned.job.devices == 8
    assert planned.estimates[0].hours_low == pytest.approx(planned.flop / 2e9 / 2 / 3600)
    text = plan_table(planned)
    assert "Memory on each of 8 devices" in text
    assert [line.split()[0] for line in text.splitlines() if "the launcher's" in line] == ["3"]
    assert planned.memory[3].states_bytes < planned.memory[0].states_bytes / 4


def test_deepspeed_in_bf16_is_planned_with_its_weights_of_16_bits(tmp_path: Path) -> None:
    """It keeps them beside those in float32, and computes with them: 4P + 16P/n bytes of ZeRO-2, not 8P + 8P/n. The
    other launchers keep one copy."""
    tiny_llama_safetensors(tmp_path)
    settings = TuneSettings(base="b", method="full", launcher="deepspeed", precision="bf16", processes=8, batch=8)
    planned = plan_of(tmp_path, settings, 1000, [])
    assert planned.memory[2].states_bytes == 4 * planned.size.parameters + 2 * planned.size.parameters
    for other in (dataclasses.replace(settings, precision="f32"), dataclasses.replace(settings, launcher="ddp")):
        assert plan_of(tmp_path, other, 1000, []).job.precision == "f32"


def test_deepspeed_is_told_what_the_others_do() -> None:
    """Rows of a step, clipping and precision are those of every launcher, else its losses would be others; and nothing
    is compiled at the start of a run."""
    settings = TuneSettings(launcher="deepspeed", zero_stage=3, processes=2, batch=8, offload="all", precision="bf16")
    told = deepspeed_config(dataclasses.asdict(settings))
    assert told["train_micro_batch_size_per_gpu"] * told["gradient_accumulation_steps"] * 2 == 8
    at_once = deepspeed_config(dataclasses.asdict(settings), 4)  # it compares them with the trainer's
    assert (at_once["train_micro_batch_size_per_gpu"], at_once["gradient_accumulation_steps"]) == (4, 1)
    assert told["gradient_clipping"] == 1.0
    assert told["bf16"] == {"enabled": True}
    assert told["zero_force_ds_cpu_optimizer"] is False
    zero = told["zero_optimization"]
    assert (zero["stage"], zero["offload_param"], zero["offload_optimizer"]) == (
        3,
        {"device": "cpu"},
        {"device": "cpu"},
    )
    assert zero["stage3_gather_16bit_weights_on_model_save"] is True
    assert "offload_param" not in deepspeed_config(dataclasses.asdict(TuneSettings()))["zero_optimization"]


KINDS = ("{kind: ddp, processes: 2}", "{kind: fsdp2, processes: 2}", "{kind: deepspeed, zero_stage: 3, processes: 2}",
         f"{{kind: fsdp2, {MACHINES}}}", f"{{kind: deepspeed, zero_stage: 1, {MACHINES}}}")  # fmt: skip


@pytest.mark.parametrize("block", KINDS)
def test_a_classifier_takes_every_launcher_and_its_share_of_texts_at_once(tmp_path: Path, block: str) -> None:
    """Only the block changes from one machine to a cluster, for classifiers, too. One that took its texts one by one
    would take as many times as long, without a word; and DeepSpeed refuses what is not as transformers is told."""
    settings = _read(tmp_path, block, task="classify")
    rows = rows_together(settings, gpu=False)
    told = deepspeed_config(dataclasses.asdict(settings), rows)
    assert (rows, told["train_micro_batch_size_per_gpu"], told["gradient_accumulation_steps"]) == (8, 8, 1)
    assert rows_together(_read(tmp_path, block, batch=16), gpu=False) == 1


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_takes_what_it_is_told(stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own classes read every configuration that can come out; a word that it does not know is refused there."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    for offload in OFFLOADS if stage == 3 else OFFLOADS[:2]:
        settings = TuneSettings(launcher="deepspeed", zero_stage=stage, processes=2, offload=offload, batch=8)
        told = deepspeed_config(dataclasses.asdict(settings))
        read = DeepSpeedConfig(told)
        assert read.zero_config.stage == stage
        assert read.gradient_accumulation_steps == 4
        assert (read.zero_config.offload_param is not None) == (offload == "all")
    with pytest.raises(ValueError, match="stages"):
        DeepSpeedZeroConfig(**told["zero_optimization"], stages=3)
