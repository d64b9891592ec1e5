"""What the machine's processors and GPUs have used, where the system says so."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path

PROCESSORS, GPUS = "processors", "GPUs"


def read_energy(root: Path = Path("/sys/class/powercap")) -> float | None:
    """Joules since some moment, of all processor packages together (Intel's and AMD's RAPL counters); None where they
    cannot be read. They count all that ran meanwhile, and wrap around after a while."""
    total = 0.0
    found = False
    try:
        for package in root.glob("intel-rapl:*"):
            if package.name.count(":") == 1:
                total += int((package / "energy_uj").read_text()) / 1e6
                found = True
    except (OSError, ValueError):
        return None
    return total if found else None


def read_gpu_energy(names: Sequence[str], library: str = "libnvidia-ml.so.1") -> float | None:
    """Joules since the driver was loaded, of all GPUs of those names (`GPU-` and a UUID) together, by the driver's own
    library; None where one cannot be read, as older ones and parts of a shared one cannot."""
    try:
        driver = ctypes.CDLL(library)
        if not names or driver.nvmlInit_v2():
            return None
    except (OSError, AttributeError):
        return None
    try:
        return sum(_joules(driver, name) for name in names)
    except (ValueError, AttributeError):
        return None
    finally:
        driver.nvmlShutdown()


def _joules(driver: ctypes.CDLL, name: str) -> float:
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    if driver.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(handle)):
        raise ValueError(name)
    if driver.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)):
        raise ValueError(name)
    return millijoules.value / 1e3


def read_all(gpus: Sequence[str]) -> dict[str, float]:
    """Of both, what can be read."""
    both = {PROCESSORS: read_energy(), GPUS: read_gpu_energy(gpus)}
    return {what: joules for what, joules in both.items() if joules is not None}


def used(before: Mapping[str, float], start: Mapping[str, float], end: Mapping[str, float]) -> dict[str, float]:
    """Joules from `start` to `end`, on top of those `before`; what has wrapped around is left out."""
    return {
        what: before.get(what, 0.0) + joules - start[what]
        for what, joules in end.items()
        if what in start and joules >= start[what]
    }
