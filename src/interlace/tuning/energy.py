"""What the machine's processors have used, where the system says so."""

from __future__ import annotations

from pathlib import Path


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
