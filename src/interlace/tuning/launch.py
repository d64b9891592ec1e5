"""How a run is spread over processes and machines: the launcher block of its settings, what each process is told, and
what DeepSpeed is told."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import yaml

LAUNCHERS = ("single", "ddp", "fsdp2", "deepspeed")
OFFLOADS = ("none", "optimizer", "all")
DEEPSPEED = "0.19.8"  # the release that the tests have run
BLOCK = (
    "processes", "zero_stage", "offload", "machines", "machine_rank", "main_address", "main_port", "join_seconds",
)  # fmt: skip
"""Settings that stand in the block `launcher: {kind: ..., ...}`, where it is written as one."""
OF_ONE_MACHINE = ("machine_rank", "main_address", "main_port", "join_seconds")
"""Those that change where a run takes place, and nothing of what comes out."""

_ADDRESS = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:-]{0,252}[A-Za-z0-9])?")
_HERE = "127.0.0.1"
_THEIRS = re.compile(
    r"RANK|(?:LOCAL|GROUP|ROLE)_RANK|(?:(?:LOCAL|GROUP|ROLE)_)?WORLD_SIZE|ROLE_NAME|"
    r"(?:MASTER|TORCHELASTIC|ACCELERATE|FSDP|PMI|OMPI_COMM_WORLD|MV2_COMM_WORLD)_.*|MPI_LOCALRANKID"
)


# --- the settings ------------------------------------------------------------------------------------------------


def entries(root: yaml.MappingNode) -> Iterator[tuple[yaml.Node, str, yaml.Node]]:
    """Key, name and value of each setting; those of the launcher's block as if they stood outside."""
    for key, value in root.value:
        name = str(key.value)
        if name != "launcher" or not isinstance(value, yaml.MappingNode):
            yield key, name, value
            continue
        for inner, said in value.value:
            word = str(inner.value)
            yield inner, "launcher" if word == "kind" else word if word in BLOCK else f"launcher.{word}", said


def launch_problems(values: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the block, each with its field and the mend. `values` are the settings that were given."""
    launcher = values.get("launcher", "single")
    processes, machines = values.get("processes", 1), values.get("machines", 1)
    together = processes * machines
    if launcher not in LAUNCHERS:
        yield f"launcher: is {launcher[:60]!r}. Write single, ddp, fsdp2 or deepspeed."
    elif launcher == "single" and machines > 1:
        yield f"machines: is {machines} with the launcher single. Write ddp, fsdp2 or deepspeed."
    elif (launcher == "single") != (together == 1):
        yield (
            f"processes: is {processes} with the launcher {launcher}. Write 1 with single, more (or several machines) "
            "with ddp, fsdp2 or deepspeed."
        )
    elif (batch := values.get("batch", 4)) % together:
        yield f"batch: is {batch}, which {together} processes cannot share. Write a multiple of {together}."
    for name in ("zero_stage", "offload"):
        if launcher != "deepspeed" and name in values:
            yield f"{name}: is for the launcher deepspeed, not {launcher[:60]}. Leave it out, or write deepspeed."
    offload = values.get("offload", "none")
    if offload not in OFFLOADS:
        yield f"offload: is {offload[:60]!r}. Write none, optimizer or all."
    elif offload == "all" and values.get("zero_stage", 2) != 3:
        yield "offload: is all, but weights are shared out by zero_stage 3 alone. Write optimizer, or zero_stage: 3."
    yield from _machine_problems(values, machines)


def _machine_problems(values: Mapping[str, Any], machines: int) -> Iterator[str]:
    address = values.get("main_address", "")
    if machines == 1:
        for name in ("machine_rank", "main_address"):
            if values.get(name):
                yield f"{name}: is for several machines, but machines is 1. Leave it out, or say how many there are."
        return
    if not address:
        yield (
            "main_address: is missing. Write the address by which the other machines reach the one with machine_rank 0."
        )
    elif not _ADDRESS.fullmatch(address):
        yield f"main_address: {address[:80]!r} is no address. Write a host's name or an IP address, without a port."
    if (rank := values.get("machine_rank", 0)) >= machines:
        yield f"machine_rank: is {rank} of {machines} machines. They are counted from 0: write 0 to {machines - 1}."


def stage_of(launcher: str, zero_stage: int) -> Literal[0, 1, 2, 3]:
    """How much the launcher shares out, as a stage of ZeRO."""
    stages: dict[int, Literal[0, 1, 2, 3]] = {0: 0, 1: 1, 2: 2, 3: 3}
    return stages[{"fsdp2": 3, "deepspeed": zero_stage}.get(launcher, 0)]


# --- processes ---------------------------------------------------------------------------------------------------


def environment_here() -> dict[str, str]:
    """Of this process, without what another launcher (torchrun, Kubernetes, MPI) has said of the place of its own: a
    process of ours would take it for its place, and wait for others that nobody starts."""
    return {name: value for name, value in os.environ.items() if not _THEIRS.fullmatch(name)}


def environments(settings: Mapping[str, Any], threads: int, *, together: bool) -> list[dict[str, str]]:
    """What each process of this machine is told: its place among all of them, and how they share the work, in
    accelerate's words; and that threads wait without turning. Alone (not `together`), there is one, with the threads of
    all. `threads` are those of one process."""
    processes, machines = int(settings["processes"]), int(settings["machines"])
    said = str(threads if together else threads * processes)
    every = {"OMP_NUM_THREADS": said, "MKL_NUM_THREADS": said, "OMP_WAIT_POLICY": "PASSIVE", **_FEW_KERNELS}
    if not together:
        return [every]
    main = (settings["main_address"], settings["main_port"]) if machines > 1 else (_HERE, _free_port())
    every |= {"MASTER_ADDR": str(main[0]), "MASTER_PORT": str(main[1]), "WORLD_SIZE": str(processes * machines)}
    every["LOCAL_WORLD_SIZE"] = str(processes)
    if machines == 1 and sys.platform == "linux" and "lo" in (name for _, name in socket.if_nameindex()):
        every["GLOO_SOCKET_IFNAME"] = "lo"  # what they say to each other stays on this machine
    every |= _WORDS.get(settings["launcher"], {})
    first = int(settings["machine_rank"]) * processes
    return [{**every, "RANK": str(first + local), "LOCAL_RANK": str(local)} for local in range(processes)]


# oneDNN keeps the code that it makes for each shape of a product, and so does what torch reaches it by: 1,024 each. In
# bfloat16, with rows of ever new lengths, that came to 0.8 GB. A pass has some twenty; those of other rows are no use.
_FEW_KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32", "LRU_CACHE_CAPACITY": "32"}

_WORDS = {
    "fsdp2": {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    },
}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HERE, 0))
        return int(probe.getsockname()[1])


def deepspeed_config(settings: Mapping[str, Any], rows: int = 1) -> dict[str, Any]:
    """What DeepSpeed is given, where each process computes so many rows at once. Optimizer and learning rate are the
    trainer's own, as with every launcher."""
    stage, offload = int(settings["zero_stage"]), settings["offload"]
    share = int(settings["batch"]) // (settings["processes"] * settings["machines"])
    zero: dict[str, Any] = {"stage": stage}
    if offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if offload == "all":
        zero["offload_param"] = {"device": "cpu"}
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True  # in float32 where the run is; the name is older
    return {
        "train_micro_batch_size_per_gpu": rows,
        "gradient_accumulation_steps": share // rows,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": settings["precision"] == "bf16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # torch's own AdamW, fused
        "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's would be compiled at the start of a run
    }
