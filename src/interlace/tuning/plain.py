"""What the libraries of a run tell each other as pickles, read as plain values.

Going on with FSDP2, torch sends the names, sizes and types of what the first process has loaded to the others, and
unpickles that there: whoever is the main machine could run any program on each. In a process of a run, such a pickle
may hold what pickles hold without help (numbers, texts, lists, dicts), shapes, types and tensors, and nothing else.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from typing import Any

import torch
from torch.distributed import distributed_c10d
from torch.distributed._state_dict_utils import _TensorInfo


def _tensor_values(raw: bytes) -> Any:
    """In place of torch's own, which would unpickle without a limit again."""
    return torch.load(io.BytesIO(raw), weights_only=True)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch.distributed._state_dict_utils", "_TensorInfo"): _TensorInfo,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch.storage", "_load_from_bytes"): _tensor_values,
    **{("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
}


class PlainUnpickler(distributed_c10d._unpickler):  # type: ignore[misc]  # torch's place for one; gone, nothing starts
    """Makes nothing that could act."""

    def find_class(self, module: str, name: str) -> Any:
        """Of the few that are allowed; ValueError names any other."""
        if (module, name) not in _ALLOWED:
            raise ValueError(f"Another process sent a {module[:80]}.{name[:80]}, which is no plain value.")
        return _ALLOWED[module, name]


def read_plainly() -> None:
    """From now on, in this process."""
    distributed_c10d._unpickler = PlainUnpickler
