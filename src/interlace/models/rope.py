"""Rotary positions as checkpoints describe them, turned into frequencies: plain, linear, Llama 3's and LongRoPE."""

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


def rope(values: Frequencies, scale: float = 1.0) -> Rope:
    """The neutral form."""
    return Rope(tuple(values.tolist()), scale)


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
            return rope(_llama3(plain, inner)), context
        case "longrope" | "su":
            return _longrope(plain, inner, fields, context)
        case other:
            raise inner.wrong("rope_type", other, "default, linear, llama3 or longrope")


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


def _llama3(plain: Frequencies, inner: Fields) -> Frequencies:
    """Llama 3.1's: slow turns are slowed by `factor`, fast ones left, those between mixed."""
    factor, low, high = (inner.number(name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    original = inner.count("original_max_position_embeddings")
    if high <= low:
        raise inner.wrong("high_freq_factor", high, "more than low_freq_factor")
    smooth = np.clip((original * plain / (2 * math.pi) - low) / (high - low), 0, 1)
    scaled: Frequencies = ((1 - smooth) * plain / factor + smooth * plain).astype(np.float32)
    return scaled


def _longrope(plain: Frequencies, inner: Fields, fields: Fields, context: int) -> tuple[Rope, int]:
    """LongRoPE within the context the model was first trained for.

    Beyond it the other factors of the file apply to a whole text, its beginning too: a sequence would have to be
    computed anew when it grows past the border. So the context ends there.
    """
    name = "original_max_position_embeddings"
    original = (fields if fields.values.get(name) is not None else inner).count(name)
    scale = inner.number("attention_factor", longrope_scale(inner.number("factor", context / original), original))
    short = np.array(inner.numbers("short_factor", len(plain)), np.float32)
    return rope(plain / short, scale), min(context, original)
