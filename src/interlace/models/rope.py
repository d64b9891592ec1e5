"""Rotary positions as checkpoints describe them, turned into frequencies: plain, linear, Llama 3's, YaRN, LongRoPE."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from interlace.models.architecture import Rope
from interlace.models.fields import Fields

Frequencies = npt.NDArray[np.float32]


def frequencies(theta: float, dimensions: int) -> Frequencies:
    """`theta ** -(2 i / dimensions)` for each pair i of `dimensions` elements."""
    return (1.0 / theta ** (np.arange(0, dimensions, 2, dtype=np.float32) / dimensions)).astype(np.float32)


def rope(values: Frequencies, scale: float = 1.0, beyond: Frequencies | None = None, border: int = 0) -> Rope:
    """The neutral form."""
    return Rope(tuple(values.tolist()), scale, () if beyond is None else tuple(beyond.tolist()), border)


def longrope(theta: float, short: Frequencies, long: Frequencies, scale: float, context: int, original: int) -> Rope:
    """LongRoPE: sequences as long as the model was first trained for turn by `short` factors, longer ones by `long`."""
    turned = theta ** (np.arange(len(short), dtype=np.float32) / len(short))
    near, far = ((1.0 / (factors * turned)).astype(np.float32) for factors in (short, long))
    return rope(near, scale, far, original) if original < context else rope(near, scale)


def yarn(theta: float, dimensions: int, stretched: float, original: int, *, fast: float = 32, slow: float = 1,
         whole: bool = True) -> Frequencies:  # fmt: skip
    """YaRN (Peng et al., 2023): pairs that turn more than `fast` times within the `original` context are left, those
    that turn less than `slow` times are slowed by `stretched`, those between mixed. `whole`: between whole pairs."""

    def pair(turns: float) -> float:
        return dimensions * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(fast), pair(slow)
    if whole:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dimensions - 1)
    if low == high:
        high += 0.001
    plain = frequencies(theta, dimensions)
    slowed = np.clip((np.arange(dimensions // 2, dtype=np.float32) - low) / (high - low), 0, 1).astype(np.float32)
    mixed: Frequencies = (plain / np.float32(stretched) * slowed + plain * (1 - slowed)).astype(np.float32)
    return mixed


def yarn_scale(stretched: float, weight: float = 1.0) -> float:
    """How much larger YaRN makes cosine and sine where the context was `stretched` so often."""
    return 0.1 * weight * math.log(stretched) + 1.0 if stretched > 1 else 1.0


def longrope_scale(stretched: float, original: int) -> float:
    """How much larger LongRoPE (Ding et al., 2024) makes cosine and sine where the context was `stretched` so often."""
    return math.sqrt(1 + math.log(stretched) / math.log(original)) if stretched > 1 < original else 1.0


def config_rope(fields: Fields, head_dim: int, kind: str = "full_attention") -> tuple[Rope, int]:
    """The rotary positions of layers of that kind, and the longest context they are right for.

    Newer files keep everything in `rope_parameters` (by kind of layer where kinds differ), older ones a `rope_theta`
    beside a `rope_scaling`.
    """
    inner = _parameters(fields, kind)
    theta = inner.number("rope_theta", _theta(fields, kind))
    share = inner.number("partial_rotary_factor", fields.values.get("partial_rotary_factor") or 1.0)
    dimensions = int(head_dim * share)
    if dimensions > head_dim or dimensions % 2 or dimensions == 0:
        raise inner.wrong("partial_rotary_factor", share, f"a share of a head of {head_dim} that is an even number")
    plain = frequencies(theta, dimensions)
    context = fields.count("max_position_embeddings", 2048)
    match inner.values.get("rope_type") or inner.values.get("type") or "default":
        case "default":
            inner.must_be_off("factor", 1)
            return rope(plain), context
        case "linear":
            return rope(plain / np.float32(inner.number("factor"))), context
        case "llama3":
            return rope(_llama3(plain, inner, _original(fields, inner, context))), context
        case "dynamic":  # plain as far as the model was trained; beyond, every token would turn all before it anew
            inner.number("factor")
            return rope(plain), context
        case "yarn":
            return _yarn(theta, dimensions, inner, _original(fields, inner, context), context)
        case "longrope" | "su":
            return _longrope(theta, dimensions, inner, _original(fields, inner, context), context), context
        case other:
            raise inner.wrong("rope_type", other, "default, linear, dynamic, llama3, yarn or longrope")


def _parameters(fields: Fields, kind: str) -> Fields:
    for name in ("rope_parameters", "rope_scaling"):
        found = fields.values.get(name)
        if found is None:
            continue
        if not isinstance(found, dict):
            raise fields.wrong(name, found, "an object")
        nested = isinstance(found.get("full_attention"), dict)
        if nested:
            found = found.get(kind)
            if not isinstance(found, dict):
                raise fields.wrong(name, found, f"an object with {kind}")
        elif kind == "sliding_attention" and "rope_local_base_freq" in fields.values:
            found = {}  # an older file of Gemma 3 scales its global layers only
        return Fields(found, f"{fields.where}, {name}")
    return Fields({}, fields.where)


def _theta(fields: Fields, kind: str) -> Any:
    local = fields.values.get("rope_local_base_freq") if kind == "sliding_attention" else None
    return local or fields.values.get("rope_theta") or 10000.0


def _original(fields: Fields, inner: Fields, context: int) -> int:
    """The context that the model was first trained for."""
    name = "original_max_position_embeddings"
    return (fields if fields.values.get(name) is not None else inner).count(name, context)


def _llama3(plain: Frequencies, inner: Fields, original: int) -> Frequencies:
    """Llama 3.1's: slow turns are slowed by `factor`, fast ones left, those between mixed."""
    factor, low, high = (inner.number(name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    if high <= low:
        raise inner.wrong("high_freq_factor", high, "more than low_freq_factor")
    smooth = np.clip((original * plain / (2 * math.pi) - low) / (high - low), 0, 1)
    scaled: Frequencies = ((1 - smooth) * plain / factor + smooth * plain).astype(np.float32)
    return scaled


def _yarn(theta: float, dimensions: int, inner: Fields, original: int, context: int) -> tuple[Rope, int]:
    """YaRN and the context it stretches to: files name the one before it, or the one after it, or both."""
    stretched = inner.number("factor")
    if theta <= 1:
        raise inner.wrong("rope_theta", theta, "more than 1")
    values = yarn(theta, dimensions, stretched, original, fast=inner.number("beta_fast", 32),
                  slow=inner.number("beta_slow", 1), whole=inner.flag("truncate", True))  # fmt: skip
    scale = yarn_scale(stretched)
    if inner.values.get("mscale") and inner.values.get("mscale_all_dim"):
        scale = yarn_scale(stretched, inner.number("mscale")) / yarn_scale(stretched, inner.number("mscale_all_dim"))
    return rope(values, inner.number("attention_factor", scale)), max(context, int(original * stretched))


def _longrope(theta: float, dimensions: int, inner: Fields, original: int, context: int) -> Rope:
    scale = inner.number("attention_factor", longrope_scale(inner.number("factor", context / original), original))
    short, long = (np.array(inner.numbers(f"{n}_factor", dimensions // 2), np.float32) for n in ("short", "long"))
    return longrope(theta, short, long, scale, context, original)
