"""`VLLM_PYTHON -m benchmarks.peers.vllm_cpu FOLDER THREADS DTYPE [ADAPTERS]`: vLLM's CPU build, in an environment of
its own; with the adapters of a folder of `benchmarks.lora`, all of which may be in one batch.

It runs in process, which is faster here than its default of an engine process beside (by about a tenth), and is stepped
by hand so that first tokens are seen. Preloading torch's OpenMP is what vLLM itself does for its worker processes.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.lines import Latecomer, Run, Stopwatch, answer_jobs

BLOCKS = 64  # of its cache, of 128 tokens each: more than 32 streams need, less memory than its least


def environment(threads: int) -> dict[str, str]:
    """What must stand in the environment before the interpreter starts."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    return {
        "LD_PRELOAD": ":".join(_openmp()),
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; BLOCKS takes less
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }


def _openmp() -> list[str]:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    torch = Path(spec.origin).parent
    found = [*torch.glob("lib/libgomp*.so*"), *torch.parent.glob("torch.libs/libgomp*.so*")]
    return [str(path) for path in found[:1]]


def load(folder: str, dtype: str, folder_of_adapters: str) -> tuple[Run, dict[str, Any]]:
    """vLLM's engine without prefix cache, otherwise with its own defaults and room for as many streams as ours."""
    began = time.perf_counter()
    import vllm

    here = Path(folder_of_adapters)
    count = len(list((here / "all").iterdir())) if folder_of_adapters else 0
    lora = {"enable_lora": True, "max_loras": count, "max_lora_rank": 8} if count else {}
    engine = vllm.LLMEngine.from_engine_args(
        vllm.EngineArgs(
            model=folder,
            dtype=dtype,
            max_model_len=1024,
            max_num_seqs=64,
            enable_prefix_caching=False,
            disable_log_stats=True,
            num_gpu_blocks_override=BLOCKS,
            **lora,
        )
    )

    def run(prompts: list[list[int]], new_tokens: int, adapters: Sequence[str] = (), tokens: bool = False,
            late: bool = False) -> Any:  # fmt: skip
        paths = [here / name for name in adapters]
        return _run(engine, prompts, new_tokens, paths, late=late) | ({} if tokens else {"tokens": []})

    return run, {"version": vllm.__version__, "load_seconds": time.perf_counter() - began}


def _run(engine: Any, prompts: list[list[int]], new_tokens: int, adapters: list[Path], *,
         late: bool) -> dict[str, Any]:  # fmt: skip
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    watch = Stopwatch(prompts, new_tokens)
    told: list[list[int]] = [[] for _ in prompts]
    greedy = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)

    def ask(stream: int) -> None:
        path = adapters[stream] if adapters else None
        lora = LoRARequest(path.name, int(path.name) + 1, str(path)) if path else None  # its ids begin at 1
        prompt = {"prompt_token_ids": prompts[stream]}
        engine.add_request(f"{watch._began}-{stream}", prompt, greedy, lora_request=lora)

    last = Latecomer(watch, (lambda: ask(len(prompts) - 1)) if late else None)
    for stream in range(len(prompts) - late):
        ask(stream)
    while engine.has_unfinished_requests():
        gained = {}
        for output in engine.step():
            stream = int(output.request_id.split("-")[1])
            told[stream] = list(output.outputs[0].token_ids)
            gained[stream] = len(told[stream]) - watch.counts[stream]
        watch.step(gained)
        last.look()
    return watch.measured() | last.measured() | {"tokens": told}


if __name__ == "__main__":
    _, folder_, threads_, dtype_, *adapters_ = sys.argv
    if os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") != "0":  # the first start: again, with the environment it needs
        os.environ.update(environment(int(threads_)))
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.peers.vllm_cpu", *sys.argv[1:]])
    answer_jobs(lambda: load(folder_, dtype_, adapters_[0] if adapters_ else ""))
