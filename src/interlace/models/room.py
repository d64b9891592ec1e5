"""Is there room? On disk before a pull, in memory before a load; a refusal states both numbers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from interlace.errors import CheckpointError
from interlace.models.space import Unfinished

if TYPE_CHECKING:
    from interlace.models.checkpoint import Checkpoint, Manifest

DISK_MARGIN_BYTES = 64 << 20  # a machine with a full disk has worse problems than a missing model

# Measured with 135 million parameters: a peak of 0.49 GB as in a Q4_1 file, 1.38 in f32, 1.11 in bf16, 0.83 in int8.
# All pass through f32 on their way, the runtime keeps a second copy, and takes some room itself. With a second graph,
# for adapters, the peak was 2.66 GB in f32.
RUNTIME_BYTES = 300 << 20
COPIES_WHILE_LOADING = 2
_BYTES_PER_PARAMETER = {"f32": 4.0, "bf16": 3.2, "int8": 2.0}

_CGROUP_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)


def check_disk(folder: Path, needed_bytes: int) -> None:
    """Raise Unfinished unless the disk of `folder` has room for `needed_bytes` and a margin."""
    free = shutil.disk_usage(folder).free
    if needed_bytes + DISK_MARGIN_BYTES > free:
        raise Unfinished(
            f"The pull needs {gigabytes(needed_bytes + DISK_MARGIN_BYTES)}, but {folder} has {gigabytes(free)} free. "
            "Make room, or set INTERLACE_HOME to a larger disk."
        )


def memory_needed(manifest: Manifest, precision: str = "file", extra_bytes: int = 0, graphs: int = 1) -> int:
    """An estimate, on the high side, of the bytes a load takes at its peak; `extra_bytes` is the KV cache and the like.
    Each of `graphs`, loaded one after another, has its own weights: one with adapters stands beside the plain one."""
    per_parameter = _BYTES_PER_PARAMETER.get(precision)
    weights = manifest.bytes if per_parameter is None else int(manifest.parameters * per_parameter)
    return graphs * COPIES_WHILE_LOADING * weights + RUNTIME_BYTES + extra_bytes


def check_memory(checkpoint: Checkpoint, extra_bytes: int = 0, precision: str = "file", graphs: int = 1) -> None:
    """Raise CheckpointError, with both numbers, when loading would need more memory than is available."""
    needed, available = memory_needed(checkpoint.manifest, precision, extra_bytes, graphs), available_memory()
    if needed > available:
        adapters = ", serve it without adapters, which need its weights twice" if graphs > 1 else ""
        raise CheckpointError(
            f"Loading {checkpoint.name} needs about {gigabytes(needed)} of memory, "
            f"{gigabytes(available)} is available. "
            f"Lower cache_bytes or the precision{adapters}, or choose a smaller checkpoint."
        )


def available_memory() -> int:
    """Bytes this process may still take: the machine's, or less where a container's limit says so."""
    import psutil

    available = int(psutil.virtual_memory().available)
    return min([available, *(left for files in _CGROUP_LIMITS if (left := _cgroup_left(*files)) is not None)])


def _cgroup_left(limit_file: str, usage_file: str, stat_file: str) -> int | None:
    """What a control group's limit leaves; page cache that can be dropped counts as free. None: no such limit."""
    try:
        limit, usage = Path(limit_file).read_text().strip(), int(Path(usage_file).read_text())
        stat = dict(line.split() for line in Path(stat_file).read_text().splitlines())
    except (OSError, ValueError):
        return None
    if not limit.isdigit():
        return None  # "max"
    return max(int(limit) - usage + int(stat.get("inactive_file", 0)), 0)


def gigabytes(count: int) -> str:
    """Bytes for people: "98.4 MB", "2.20 GB"."""
    if count < 1_000_000:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e9:.2f} GB" if count >= 1_000_000_000 else f"{count / 1e6:.1f} MB"
