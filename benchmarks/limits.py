"""What the machine can do at all: operations per second of a large product, and bytes per second."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openvino as ov
from openvino import PartialShape, Type
from openvino import opset13 as ops

_SIDE = 2048
_BYTES = 512 << 20  # far more than a processor's caches hold
_SECONDS = 0.5


def gflops(precision: str, threads: int) -> float:
    """10^9 operations a second of a product of two matrices of 2048 by 2048 by the runtime at that precision."""
    x = ops.parameter(PartialShape([-1, _SIDE]), dtype=Type.f32)
    weight = ops.constant(np.random.default_rng(0).random((_SIDE, _SIDE), np.float32))
    product = ops.matmul(x, weight, transpose_a=False, transpose_b=True)
    model = ov.Model([ops.result(ops.reduce_sum(product, ops.constant(np.int64(1)), keep_dims=False))], [x], "product")
    properties = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    request = ov.Core().compile_model(model, "CPU", properties).create_infer_request()
    request.set_input_tensor(ov.Tensor(np.ones((_SIDE, _SIDE), np.float32)))
    return 2 * _SIDE**3 / _fastest(request.infer) / 1e9


def gigabytes_per_second(threads: int) -> float:
    """10^9 bytes a second that so many threads read of one large array."""
    parts = np.array_split(np.ones(_BYTES // 4, np.float32), threads)
    with ThreadPoolExecutor(threads) as pool:
        return _BYTES / _fastest(lambda: list(pool.map(np.max, parts))) / 1e9


def _fastest(call: Any) -> float:
    """Seconds of the fastest of the calls that fit into a moment."""
    call()
    taken: list[float] = []
    while sum(taken) < _SECONDS or len(taken) < 3:
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return min(taken)
