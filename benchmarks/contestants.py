"""Who takes part in `make bench-engine`, how each is started, and what each is asked."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks import setup
from benchmarks.lora import REGISTERED, RESIDENT

Command = Callable[[], list[str]]
"""Makes what a process needs and returns how to start it; raises `setup.NotHere`."""

VLLM, VLLM_BF16 = "vLLM CPU fp32", "vLLM CPU bf16"
GENAI = "openvino-genai"
REFERENCE = "transformers"
_KINDS = {"all": f"{RESIDENT} adapters", "qv": f"{RESIDENT} on q, v", "many": f"{REGISTERED:,} adapters"}
PRECISIONS = ("f32", "bf16", "int8", "file")


STATIC = ("PEFT", "onnxruntime-genai")
"""Nobody joins a batch of these, nor of the reference: who comes late waits until it is done."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """A line of the tables. `process` is the one of `commands` that it runs in; `adapters` is the kind that its streams
    have, each its own: "" for none, "all", "qv", or "many" for a thousand that take turns."""

    name: str
    process: str
    adapters: str = ""
    widest_only: bool = False

    @property
    def joins(self) -> bool:
        """Whether a stream may begin while others run."""
        return self.process != REFERENCE and not self.process.startswith(STATIC)

    def adapter_names(self, streams: int) -> list[str]:
        """An adapter for each stream."""
        return [f"{self.adapters}/{number}" for number in range(streams)] if self.adapters else []


def ours(precision: str) -> str:
    """Our base at that precision."""
    return f"interlace {precision}"


def adapted(base: str, kind: str = "all") -> str:
    """The same with adapters."""
    return f"{base}, {_KINDS[kind]}"


def contestants() -> Iterator[Contestant]:
    """In the order in which they are loaded, the ones that goals speak of first."""
    for precision in ("f32", "bf16", "file"):
        yield Contestant(ours(precision), ours(precision))
    for name in (GENAI, VLLM, VLLM_BF16):
        yield Contestant(name, name)
    for precision in ("f32", "bf16"):
        base = ours(precision)
        process, narrow = adapted(base), adapted(base, "qv")
        yield Contestant(process, process, "all")
        yield Contestant(adapted(base, "many"), process, "many", widest_only=True)
        yield Contestant(narrow, narrow, "qv", widest_only=True)  # its own process: a graph has the layers asked for
    yield Contestant(ours("int8"), ours("int8"))
    for base in (VLLM, VLLM_BF16):
        yield Contestant(adapted(base), adapted(base), "all")
    yield Contestant(REFERENCE, REFERENCE)
    yield Contestant("transformers batch", "transformers batch")
    yield Contestant(adapted("PEFT"), adapted("PEFT"), "all")
    yield Contestant("onnxruntime-genai fp32", "onnxruntime-genai fp32")
    yield Contestant("onnxruntime-genai int4", "onnxruntime-genai int4")


def commands(gguf: Path, f32: Path, adapters: Path, home: Path, threads: int, console: Console) -> dict[str, Command]:
    """How to start the process of each name; `home` is ours. All load the same weights as float32, but those
    whose name is `file`, `int8` or genai's: they load the GGUF."""

    def interlace(precision: str, *more: str) -> Command:
        checkpoint = str(f32 if precision in ("f32", "bf16") else gguf)
        return lambda: [*_ours("interlace_core"), checkpoint, precision, str(threads), *more]

    def vllm(dtype: str, *more: str) -> Command:
        return lambda: [*_theirs(setup.vllm_python(console), "vllm_cpu"), str(f32), str(threads), dtype, *more]

    def torch(how: str, *more: str) -> Command:
        python = setup.transformers_python
        return lambda: [*_theirs(python(console), "torch_generate"), how, str(f32), str(threads), *more]

    def ort(precision: str) -> Command:
        def command() -> list[str]:
            folder = setup.ort_model(f32, precision, console)
            return [*_theirs(setup.ort_python(console), "ort_genai"), str(folder), str(threads)]

        return command

    known = {ours(precision): interlace(precision) for precision in PRECISIONS}
    for precision in ("f32", "bf16"):
        for kind in ("all", "qv"):
            known[adapted(ours(precision), kind)] = interlace(precision, str(adapters), str(home))
    known |= {VLLM: vllm("float32"), VLLM_BF16: vllm("bfloat16")}
    known |= {adapted(VLLM): vllm("float32", str(adapters)), adapted(VLLM_BF16): vllm("bfloat16", str(adapters))}
    known[GENAI] = lambda: [*_theirs(setup.genai_python(console), "genai"), str(gguf), str(threads)]
    known |= {REFERENCE: torch("generate"), "transformers batch": torch("generate_batch")}
    known[adapted("PEFT")] = torch("peft", str(adapters))
    known |= {f"onnxruntime-genai {precision}": ort(precision) for precision in ("fp32", "int4")}
    return known


def _ours(module: str) -> list[str]:
    return [sys.executable, "-m", f"benchmarks.peers.{module}"]


def _theirs(python: Path, module: str) -> list[str]:
    return [str(python), "-m", f"benchmarks.peers.{module}"]
