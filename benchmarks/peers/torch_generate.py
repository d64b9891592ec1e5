"""`TRANSFORMERS_PYTHON -m benchmarks.peers.torch_generate HOW FOLDER THREADS [ADAPTERS]`: transformers in float32, as
its documentation says: HOW is `generate`, `generate_batch` (its continuous batching), or `peft`, which is `generate`
with the adapters of a folder of `benchmarks.lora`, a name for each row."""

from __future__ import annotations

import queue
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.lines import Latecomer, Run, Stopwatch, answer_jobs

CACHE_BYTES, PAGE = 1 << 30, 256  # of its cache; and what it calls a block


def load(how: str, folder: str, threads: int, adapters: str) -> tuple[Run, dict[str, Any]]:
    """The model, in process."""
    began = time.perf_counter()
    import torch
    import transformers

    torch.set_num_threads(threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    about = {"version": transformers.__version__}
    if how == "peft":
        import peft

        about = {"version": peft.__version__}
        for number, path in enumerate(sorted((Path(adapters) / "all").iterdir(), key=lambda path: int(path.name))):
            if number == 0:
                model = peft.PeftModel.from_pretrained(model, path, adapter_name="all/0")
            else:
                model.load_adapter(path, adapter_name=f"all/{path.name}")
        model.eval()
    run = _continuous(model) if how == "generate_batch" else _together(model)
    return run, about | {"load_seconds": time.perf_counter() - began}


def _together(model: Any) -> Run:
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Watching(StoppingCriteria):  # type: ignore[misc]  # transformers has no types here
        """Asked after each step whether to stop; never does, but sees the time."""

        def __init__(self, watch: Stopwatch, streams: int) -> None:
            self._watch, self._streams = watch, streams

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            del scores, kwargs
            self._watch.step(dict.fromkeys(range(self._streams), 1))
            return torch.zeros(len(input_ids), dtype=torch.bool)

    def run(prompts: list[list[int]], new_tokens: int, adapters: Sequence[str] = (), tokens: bool = False) -> Any:
        watch = Stopwatch(prompts, new_tokens)
        ids = torch.tensor(prompts)
        more = {"adapter_names": list(adapters)} if adapters else {}
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([Watching(watch, len(prompts))]),
                **more,
            )
        told = out[:, ids.shape[1] :].tolist() if tokens else []
        return watch.measured() | {"tokens": told}

    return run


def _continuous(model: Any) -> Run:
    from transformers import ContinuousBatchingConfig, GenerationConfig

    shape = model.config
    token = 2 * 4 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim
    room = ContinuousBatchingConfig(num_blocks=CACHE_BYTES // token // PAGE)  # left alone, it takes half the memory

    def run(prompts: list[list[int]], new_tokens: int, adapters: Sequence[str] = (), tokens: bool = False,
            late: bool = False) -> Any:  # fmt: skip
        assert not adapters, "it cannot mix adapters"
        settings = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
        with model.continuous_batching_context_manager(settings, continuous_batching_config=room) as manager:
            watch = Stopwatch(prompts, new_tokens)  # the manager's own start is not counted
            streams: dict[str, int] = {}
            unfinished: set[str] = set()
            told: list[list[int]] = [[] for _ in prompts]

            def ask(stream: int) -> None:
                name = manager.add_request(prompts[stream], max_new_tokens=new_tokens, streaming=True, eos_token_id=-1)
                streams[name] = stream
                unfinished.add(name)

            last = Latecomer(watch, (lambda: ask(len(prompts) - 1)) if late else None)
            for stream in range(len(prompts) - late):
                ask(stream)
            while unfinished:
                first = manager.get_result(timeout=60)
                if first is None:
                    raise RuntimeError("its thread has ended, or says nothing for a minute")
                gained = {}
                for output in [first, *_here(manager)]:
                    if output.error:
                        raise RuntimeError(output.error)
                    stream = streams[output.request_id]
                    gained[stream] = len(output.generated_tokens) - watch.counts[stream]
                    told[stream] = list(output.generated_tokens)
                    if output.is_finished():
                        unfinished.discard(output.request_id)
                watch.step({stream: count for stream, count in gained.items() if count})
                last.look()
            return watch.measured() | last.measured() | {"tokens": told if tokens else []}

    return run


def _here(manager: Any) -> list[Any]:
    """What else has come with the same step, in the order it came; the last of a stream counts."""
    found = []
    while True:
        try:
            found.append(manager.output_router.output_queue.get_nowait())
        except queue.Empty:
            return found


if __name__ == "__main__":
    _, how_, folder_, threads_, *adapters_ = sys.argv
    answer_jobs(lambda: load(how_, folder_, int(threads_), adapters_[0] if adapters_ else ""))
