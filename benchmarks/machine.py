"""Where and when a measurement was made: what its reader must know to compare it with another."""

from __future__ import annotations

import datetime as dt
import os
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

# What matrix products are built from, per architecture; others say little about speed.
_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8",
          "asimd", "asimddp", "bf16", "i8mm", "sve")  # fmt: skip
_PACKAGES = ("interlace", "openvino", "numpy", "uvicorn")


def describe() -> dict[str, Any]:
    """The machine, the date and the versions, ready for JSON. `load` is the load average before the measurement."""
    info = _cpuinfo()
    flags = set(info.get("flags", info.get("Features", "")).split())
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
        "versions": {name: version(name) for name in _PACKAGES},
    }


def lines(about: dict[str, Any]) -> Iterable[str]:
    """The same for people, a fact a line."""
    yield f"{about['date']}, {about['cpu']}, {about['cores']} cores, {about['memory_gib']} GiB, {about['system']}"
    yield f"CPU flags that matter: {' '.join(about['flags']) or 'none known'}"
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    yield f"Python {about['python']}, {versions}"
    after = f", after it: {about['load_after']}" if "load_after" in about else ""
    yield f"load average before the run: {about['load']}{after}"
    if "limits" in about:
        yield "The machine's limits: " + ", ".join(f"{value:,.1f} {name}" for name, value in about["limits"].items())
    yield from filter(None, (about.get("adapters"), *about.get("reached", ())))
    if "cores_used" in about:
        yield f"{about['cores_used']}; turns of {about['seconds']:g} s" if "seconds" in about else about["cores_used"]


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first, *_ = path.read_text().split("\n\n")
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
