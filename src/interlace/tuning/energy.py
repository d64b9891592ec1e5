"""What the machine's processors and GPUs have used, where the system says so."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

PROCESSORS, GPUS = "processors", "GPUs"
ROOT = Path("/sys/class/powercap")
LOOK_SECONDS = 15.0
MOST_WATTS = 1000.0  # of one package: twice what the largest take


class Counter(msgspec.Struct, frozen=True):
    """Of one processor package: joules since some moment, and how many there are until it begins anew at nothing."""

    joules: float
    most: float


def read_packages(root: Path = ROOT) -> dict[str, Counter]:
    """The counters of all processor packages (Intel's and AMD's RAPL), by name; none where one cannot be read. They
    count all that runs on the machine. The counter of a whole platform is left out: the packages are in it again."""
    found = {}
    try:
        for package in root.glob("intel-rapl:*"):
            if package.name.count(":") != 1 or _word(package / "name") == "psys":
                continue
            joules, most = (int((package / file).read_text()) / 1e6 for file in ("energy_uj", "max_energy_range_uj"))
            found[package.name] = Counter(joules, most)
    except (OSError, ValueError):
        return {}
    return found


def _word(file: Path) -> str:
    return file.read_text().strip() if file.exists() else ""


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


class Meter:
    """What processors and GPUs use from the making of this on. A processor's counter begins anew after some minutes of
    work (65 kJ on many, 262 kJ on others), so it has to be looked at more often: `watch` does that."""

    def __init__(
        self, gpus: Sequence[str] = (), root: Path = ROOT, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._gpus, self._root, self._clock = gpus, root, clock
        self._lock = threading.Lock()
        self._at, self._seen, self._joules = clock(), read_packages(root), 0.0
        self._first = read_gpu_energy(gpus)

    def watch(self) -> None:
        """Look every few seconds, as long as the process lives."""

        def watch() -> None:
            while self._seen:
                time.sleep(LOOK_SECONDS)
                self.look()

        threading.Thread(target=watch, daemon=True).start()

    def look(self) -> None:
        """Add what the packages have used since the last look. Where so much time has passed that a counter may have
        begun anew more than once, or where one has gone, nothing is told of them any more."""
        with self._lock:
            now, seen = self._clock(), read_packages(self._root)
            passed, self._at = now - self._at, now
            if seen.keys() != self._seen.keys() or any(passed * MOST_WATTS >= one.most for one in seen.values()):
                seen = {}
            self._joules += sum((one.joules - self._seen[name].joules) % one.most for name, one in seen.items())
            self._seen = seen

    def used(self) -> dict[str, float]:
        """Joules of each that could be told all the time."""
        self.look()
        found = {PROCESSORS: self._joules} if self._seen else {}
        last = None if self._first is None else read_gpu_energy(self._gpus)
        if self._first is not None and last is not None and last >= self._first:  # else the driver was loaded anew
            found[GPUS] = last - self._first
        return found


def with_earlier(earlier: Mapping[str, float] | None, now: Mapping[str, float]) -> dict[str, float]:
    """Joules of a part of a run on top of those of the `earlier` ones (None: there are none). What one part could not
    tell is not told of the whole: it would be too little."""
    if earlier is None:
        return dict(now)
    return {what: earlier[what] + joules for what, joules in now.items() if what in earlier}
