"""`python -m benchmarks.limits THREADS`: what this machine can do at most, as JSON: multiply-adds and bytes a second.

A process of its own, because an idle pool of threads beside a measurement is one too many.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

SIZE, REPEATS = 2048, 7  # of the square matrices of the product; the best of so many counts
READ_BYTES = 1 << 30  # far beyond every cache


def limits(root: str, threads: int) -> dict[str, float]:
    """`gflops_f32`, `gflops_bf16` and `gigabytes` a second."""
    command = [sys.executable, "-m", "benchmarks.limits", str(threads)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=300)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _product(threads: int, precision: str) -> float:
    """GFLOP/s of a large product in the runtime that Interlace computes with."""
    import openvino as ov
    from openvino import opset15 as op

    random = np.random.default_rng(0)
    left = op.parameter([SIZE, SIZE], ov.Type.f32)
    weights = op.constant(random.standard_normal((SIZE, SIZE), np.float32))
    model = ov.Model([op.matmul(left, weights, transpose_a=False, transpose_b=True)], [left])
    wanted = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    request = ov.Core().compile_model(model, "CPU", wanted).create_infer_request()
    given = random.standard_normal((SIZE, SIZE), np.float32)
    return 2 * SIZE**3 / _best(lambda: request.infer([given], share_inputs=True)) / 1e9


def _reading(threads: int) -> float:
    """Bytes a second of reading a large array: as wide vectors times it, which computes next to nothing."""
    import openvino as ov
    from openvino import opset15 as op

    columns = 4096
    rows = READ_BYTES // 4 // columns
    left = op.parameter([1, columns], ov.Type.f32)
    weights = op.constant(np.ones((rows, columns), np.float32))
    model = ov.Model([op.matmul(left, weights, transpose_a=False, transpose_b=True)], [left])
    wanted = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    request = ov.Core().compile_model(model, "CPU", wanted).create_infer_request()
    given = np.ones((1, columns), np.float32)
    return READ_BYTES / _best(lambda: request.infer([given], share_inputs=True))


def _best(run: Callable[[], object]) -> float:
    run()
    took = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        run()
        took.append(time.perf_counter() - began)
    return min(took)


if __name__ == "__main__":
    wanted_ = int(sys.argv[1])
    print(
        json.dumps(
            {
                "gflops_f32": _product(wanted_, "f32"),
                "gflops_bf16": _product(wanted_, "bf16"),
                "gigabytes": _reading(wanted_) / 1e9,
            }
        )
    )
