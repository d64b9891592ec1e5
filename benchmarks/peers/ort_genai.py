"""`ORT_PYTHON -m benchmarks.peers.ort_genai FOLDER THREADS`: onnxruntime-genai over a folder of its model builder."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.lines import Run, Stopwatch, answer_jobs


def load(folder: str, threads: int) -> tuple[Run, dict[str, Any]]:
    """The model, in process, on so many threads."""
    began = time.perf_counter()
    import numpy as np
    import onnxruntime_genai as og

    settings = Path(folder) / "genai_config.json"
    config = json.loads(settings.read_text())
    config["model"]["decoder"].setdefault("session_options", {})["intra_op_num_threads"] = threads
    settings.write_text(json.dumps(config, indent=1))
    model = og.Model(folder)

    def run(prompts: list[list[int]], new_tokens: int, adapters: Sequence[str] = (), tokens: bool = False) -> Any:
        assert not adapters, "it cannot mix adapters"
        length = len(prompts[0]) + new_tokens
        watch = Stopwatch(prompts, new_tokens)
        wanted = og.GeneratorParams(model)
        wanted.set_search_options(do_sample=False, max_length=length, min_length=length, batch_size=len(prompts))
        generator = og.Generator(model, wanted)
        generator.append_tokens(np.array(prompts, dtype=np.int32))
        while not generator.is_done():
            generator.generate_next_token()
            watch.step(dict.fromkeys(range(len(prompts)), 1))
        told = [list(map(int, generator.get_sequence(i)[len(prompts[0]) :])) for i in range(len(prompts))]
        return watch.measured() | {"tokens": told if tokens else []}

    return run, {"version": og.__version__, "load_seconds": time.perf_counter() - began}


if __name__ == "__main__":
    _, folder_, threads_ = sys.argv
    answer_jobs(lambda: load(folder_, int(threads_)))
