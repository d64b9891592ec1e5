"""`GENAI_PYTHON -m benchmarks.peers.genai GGUF THREADS`: openvino-genai's continuous batching with its own defaults,
which load a four-bit GGUF as four bits. Stepped by hand, so that first tokens are seen."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.peers.lines import Latecomer, Run, Stopwatch, answer_jobs


def load(checkpoint: str, threads: int) -> tuple[Run, dict[str, Any]]:
    """The pipeline, in process."""
    began = time.perf_counter()
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    pipeline = genai.ContinuousBatchingPipeline(
        checkpoint, genai.SchedulerConfig(), "CPU", {"INFERENCE_NUM_THREADS": threads}
    )
    asked = 0

    def run(prompts: list[list[int]], new_tokens: int, adapters: Sequence[str] = (), tokens: bool = False,
            late: bool = False) -> Any:  # fmt: skip
        assert not adapters, "it cannot mix adapters"
        watch = Stopwatch(prompts, new_tokens)
        greedy = genai.GenerationConfig()
        greedy.max_new_tokens, greedy.ignore_eos, greedy.do_sample = new_tokens, True, False
        handles = {}

        def ask(stream: int) -> None:
            nonlocal asked
            asked += 1  # an id that was used before spoils the whole pipeline
            ids = ov.Tensor(np.array([prompts[stream]], dtype=np.int64))
            handles[stream] = pipeline.add_request(asked, ids, greedy)

        last = Latecomer(watch, (lambda: ask(len(prompts) - 1)) if late else None)
        for stream in range(len(prompts) - late):
            ask(stream)
        told: list[list[int]] = [[] for _ in prompts]
        while pipeline.has_non_finished_requests():
            pipeline.step()
            gained = {}
            for stream, handle in handles.items():
                if handle.can_read():  # reading one that has nothing would wait for ever
                    ids = [id for output in handle.read().values() for id in output.generated_ids]
                    told[stream] += ids
                    gained[stream] = len(ids)
            watch.step(gained)
            last.look()
        return watch.measured() | last.measured() | {"tokens": told if tokens else []}

    return run, {"version": genai.__version__, "load_seconds": time.perf_counter() - began}


if __name__ == "__main__":
    _, checkpoint_, threads_ = sys.argv
    answer_jobs(lambda: load(checkpoint_, int(threads_)))
