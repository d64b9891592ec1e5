"""`python -m benchmarks.peers.bare_openvino FOLDER THREADS`: the yardstick of our engine.

The same runtime and operations without scheduler, sampler, requests or text: all prompts prefilled in one step, then a
loop of steps with a fixed table of cache blocks and a bare argmax. What the engine loses to this is its own doing. It
shares no code with the engine on purpose. Llama family, tied embeddings, float32 only.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import PartialShape, Type
from openvino import opset13 as op
from openvino.op import _PagedAttentionExtension as PagedAttention
from safetensors import safe_open

from benchmarks.peers.lines import Run, Stopwatch, answer_jobs

BLOCK = 32
STREAM_BLOCKS = 20  # of each stream: 640 tokens
INTS = ("past_lens", "subsequence_begins", "block_indices_begins", "block_indices", "logits_idx")


def build(folder: Path) -> ov.Model:
    """The decoder as a graph, weights and all."""
    config = json.loads((folder / "config.json").read_text())
    layers, heads, kv_heads = (config[f"num_{n}"] for n in ("hidden_layers", "attention_heads", "key_value_heads"))
    dim = config.get("head_dim") or config["hidden_size"] // heads
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    stored = safe_open(folder / "model.safetensors", "np")
    inputs: dict[str, Any] = {}

    def const(value: Any, dtype: Any = np.int64) -> Any:
        return op.constant(np.asarray(value, dtype))

    def parameter(name: str, shape: list[int], dtype: Type) -> Any:
        inputs[name] = op.parameter(PartialShape(shape), dtype=dtype, name=name)
        inputs[name].get_output_tensor(0).set_names({name})
        return inputs[name]

    def weight(name: str) -> Any:
        return op.constant(stored.get_tensor(name).astype(np.float32))

    def rms(x: Any, name: str) -> Any:
        mean = op.reduce_mean(op.power(x, const(2, np.float32)), const([-1]), True)
        root = op.sqrt(op.add(mean, const(config["rms_norm_eps"], np.float32)))
        scaled = op.multiply(x, op.divide(const(1, np.float32), root))
        return op.multiply(scaled, op.constant(stored.get_tensor(name).astype(np.float32)[None]))

    def rope(x: Any, n: int) -> Any:
        x = op.reshape(x, const([0, n, 1, dim]), True)
        low = op.slice(x, const([0]), const([dim // 2]), const([1]), const([3]))
        high = op.slice(x, const([dim // 2]), const([2**62]), const([1]), const([3]))
        turned = op.concat([op.multiply(high, const([[[[-1]]]], np.float32)), low], -1)
        return op.reshape(op.add(op.multiply(x, cos), op.multiply(turned, sin)), const([0, n * dim]), True)

    def none(dtype: Any, shape: Any = (0,)) -> Any:
        return op.constant(np.zeros(shape, dtype))

    def attend(q: Any, k: Any, v: Any, layer: int) -> Any:
        caches = [parameter(f"{c}_cache.{layer}", [-1, kv_heads, BLOCK, dim], Type.dynamic) for c in ("key", "value")]
        begins = [inputs[name] for name in ("past_lens", "subsequence_begins", "block_indices", "block_indices_begins")]
        off = [none(np.int32), none(np.int32), none(np.int32), none(np.float32), none(np.float32)]
        off += [const(0, np.int32), const(0, np.int32), none(np.float32, (0, 0, 0, 0)), const(0, np.int32)]
        off += [none(np.int32)] * 4 + [none(np.uint8), none(np.int32)]
        scale = [const(dim**-0.5, np.float32), const(0, np.int32), none(np.float32), inputs["max_context_len"]]
        node = PagedAttention([x.output(0) for x in (q, k, v, *caches, *begins, *scale, *off)])
        for key, value in zip(("num_k_heads", "num_v_heads", "k_head_size", "v_head_size"),
                              (kv_heads, kv_heads, dim, dim), strict=True):  # fmt: skip
            node.get_rt_info()[key] = value
        return op.reshape(node.output(0), const([-1, heads * dim]), False)

    ids, positions = (parameter(name, [-1], Type.i64) for name in ("input_ids", "position_ids"))
    parameter("max_context_len", [], Type.i32)
    for name in INTS:
        parameter(name, [-1], Type.i32)
    embedding = weight("model.embed_tokens.weight")
    inverse = (1.0 / theta ** (np.arange(0, dim, 2, dtype=np.float32) / dim)).astype(np.float32)
    angles = op.multiply(op.unsqueeze(op.convert(positions, "f32"), const([1])), op.constant(inverse[None]))
    angles = op.concat([angles, angles], -1)
    cos, sin = (op.unsqueeze(f(angles), const([1, 2])) for f in (op.cos, op.sin))
    x = op.gather(embedding, ids, const(0))
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        normed = rms(x, prefix + "input_layernorm.weight")
        q, k, v = (op.matmul(normed, weight(f"{prefix}self_attn.{c}_proj.weight"), False, True) for c in "qkv")
        attended = attend(rope(q, heads), rope(k, kv_heads), v, layer)
        x = op.add(x, op.matmul(attended, weight(prefix + "self_attn.o_proj.weight"), False, True))
        normed = rms(x, prefix + "post_attention_layernorm.weight")
        gate, up = (op.matmul(normed, weight(f"{prefix}mlp.{c}_proj.weight"), False, True) for c in ("gate", "up"))
        x = op.add(x, op.matmul(op.multiply(op.swish(gate), up), weight(prefix + "mlp.down_proj.weight"), False, True))
    x = rms(op.gather(x, inputs["logits_idx"], const(0)), "model.norm.weight")
    return ov.Model([op.result(op.matmul(x, embedding, False, True))], list(inputs.values()), "bare")


class Loop:
    """The compiled graph with a cache for 32 streams, and the loop over it."""

    def __init__(self, folder: Path, threads: int) -> None:
        properties = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "NUM_STREAMS": 1,
                      "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "INFERENCE_NUM_THREADS": threads,
                      "ENABLE_CPU_PINNING": False}  # fmt: skip
        self.compiled = ov.Core().compile_model(build(folder), "CPU", properties)
        self.request = self.compiled.create_infer_request()
        for port in self.compiled.inputs:
            if "_cache." in port.get_any_name():
                shape = [32 * STREAM_BLOCKS, *(d.get_length() for d in list(port.partial_shape)[1:])]
                self.request.set_tensor(port, ov.Tensor(port.element_type, ov.Shape(shape)))

    def forward(self, tokens: Any, past: Any, lengths: Any) -> Any:
        """One step: `lengths[i]` tokens of stream i behind the `past[i]` in its cache; the next token of each."""
        begins = np.concatenate([[0], np.cumsum(lengths)])
        used = -(-(past + lengths) // BLOCK)
        values = {
            "past_lens": past,
            "subsequence_begins": begins,
            "block_indices_begins": np.concatenate([[0], np.cumsum(used)]),
            "block_indices": np.concatenate([np.arange(n) + i * STREAM_BLOCKS for i, n in enumerate(used)]),
            "logits_idx": begins[1:] - 1,
            "max_context_len": (past + lengths).max(),
        }
        wide = {
            "input_ids": tokens,
            "position_ids": np.concatenate([np.arange(p, p + n) for p, n in zip(past, lengths, strict=True)]),
        }
        for name, value in values.items():
            self.request.set_tensor(name, ov.Tensor(np.array(value, np.int32)))
        for name, value in wide.items():
            self.request.set_tensor(name, ov.Tensor(np.array(value, np.int64)))
        self.request.infer()
        return self.request.get_output_tensor(0).data.argmax(axis=1)

    def run(self, prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
        """Prefill, then decode all streams in step."""
        watch = Stopwatch(prompts, new_tokens)
        every = dict.fromkeys(range(len(prompts)), 1)
        past, lengths = np.zeros(len(prompts), np.int64), np.array([len(prompt) for prompt in prompts])
        tokens = self.forward(np.concatenate(prompts), past, lengths)
        watch.step(every)
        for _ in range(new_tokens - 1):
            past, lengths = past + lengths, np.ones_like(past)
            tokens = self.forward(tokens, past, lengths)
            watch.step(every)
        return watch.measured()


def load(folder: Path, threads: int) -> tuple[Run, dict[str, Any]]:
    """The loop, compiled."""
    began = time.perf_counter()
    loop = Loop(folder, threads)
    return loop.run, {"version": ov.__version__, "load_seconds": time.perf_counter() - began}


if __name__ == "__main__":
    answer_jobs(lambda: load(Path(sys.argv[1]), int(sys.argv[2])))
