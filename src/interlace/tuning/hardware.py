"""What training can run on: the devices of `hardware.yaml`, and this machine as it is measured."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec

from interlace.money import Nanos, parse_usd

_TERA = 10**12
_F32_SHARE = (0.25, 0.7)  # of the peak in float32, that training reaches
_MEASURE = """
import time, numpy
left = numpy.ones((512, 512), dtype=numpy.float32)
best, end = float("inf"), time.perf_counter() + 0.5
while time.perf_counter() < end or best == float("inf"):
    start = time.perf_counter()
    left @ left
    best = min(best, time.perf_counter() - start)
print(2 * 512**3 / best)
"""


@dataclass(frozen=True, slots=True)
class Price:
    """One device for one hour, in nano-dollars, as `seller` stated it on `date`, and who says so."""

    nanos_per_device_hour: Nanos
    date: dt.date
    seller: str
    source: str


class Device(msgspec.Struct, frozen=True):
    """A GPU as a training process found it; `flop_per_second` is what large products of matrices reach."""

    name: str
    memory_bytes: int
    flop_per_second: float


@dataclass(frozen=True, slots=True)
class Hardware:
    """One kind of device. Speeds are what training reaches, not what the maker states; no prices: it is one's own."""

    name: str
    title: str
    memory_bytes: int
    flop_per_second_low: float
    flop_per_second_high: float
    prices: tuple[Price, ...] = ()
    gpu: bool = False


class _Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    low: float
    high: float
    source: str


class _Peak(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    peak_tflop_per_second: float
    source: str


class _Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    usd_per_device_hour: str
    date: dt.date
    seller: str
    source: str


class _Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    title: str
    memory_mib: int
    peak_tflop_per_second: float
    f32: _Peak
    sustained_tflop_per_second: _Range
    prices: tuple[_Price, ...]
    bf16: bool = True


@cache
def known_hardware(precision: str = "") -> Mapping[str, Hardware]:
    """Name → device, in the order of the file, with its speeds in 16 bits, or in float32 (`f32`), which is slower by
    far. `bf16`: those that have it. Raises `ValueError` where the file contradicts itself."""
    import yaml

    text = files("interlace.tuning").joinpath("hardware.yaml").read_text(encoding="utf-8")
    devices = msgspec.convert(yaml.safe_load(text), dict[str, _Device])
    able = {name: device for name, device in devices.items() if device.bf16 or precision != "bf16"}
    return {name: _hardware(name, device, precision) for name, device in able.items()}


def _hardware(name: str, device: _Device, precision: str) -> Hardware:
    speed = device.sustained_tflop_per_second
    if not 0 < speed.low <= speed.high <= device.peak_tflop_per_second:
        raise ValueError(f"{name}: sustained speeds must rise from low to high, below the peak")
    low, high, title = speed.low, speed.high, device.title
    if precision == "f32":
        low, high = (share * device.f32.peak_tflop_per_second for share in _F32_SHARE)
        title += ", float32"
    prices = [Price(parse_usd(one.usd_per_device_hour), one.date, one.seller, one.source) for one in device.prices]
    return Hardware(name, title, device.memory_mib << 20, low * _TERA, high * _TERA, tuple(prices), gpu=True)


def this_machine() -> Hardware:
    """This machine's processor, measured for a second: a product of two matrices in float32 on one core, times its
    cores, tells its peak, of which training on processors reaches about a quarter to two thirds. Its memory is all that
    it has."""
    import psutil

    peak = _flop_per_second_of_a_core() * (psutil.cpu_count(logical=False) or 1)
    memory: Any = psutil.virtual_memory()
    return Hardware("here", "this machine", memory.total, peak / 4, peak * 2 / 3)


def this_gpu(device: Device) -> Hardware:
    """The GPU of this machine. Training reaches a tenth to a half of what products of matrices do: small models and
    short rows keep it waiting for the processor."""
    peak = device.flop_per_second
    return Hardware("here", f"this machine's {device.name}", device.memory_bytes, peak / 10, peak / 2, gpu=True)


def quicker_precision() -> str:
    """f32 or bf16, whichever this machine learns quicker in: `precision: auto`. In a process of its own, as PyTorch is
    loaded for it (three seconds)."""
    measure = "from interlace.tuning.devices import quicker_precision; print(quicker_precision())"
    done = subprocess.run(
        [sys.executable, "-P", "-c", measure], check=True, capture_output=True, text=True, timeout=120
    )
    return done.stdout.strip()


def _flop_per_second_of_a_core() -> float:
    """The best of many tries, in a process of its own: how many threads numpy takes is settled when it is loaded, and
    several of them wait for each other where anything else runs."""
    one = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, "-P", "-c", _MEASURE],
        env=os.environ | one, check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return float(done.stdout)
