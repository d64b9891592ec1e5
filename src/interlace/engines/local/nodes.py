"""Small pieces that graphs are built of: constants, norms, activations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from interlace.engines.local.constants import Array
from interlace.models import Activation


def float32(value: float) -> ov.Node:
    """A scalar."""
    return ops.constant(np.float32(value))


def integer(value: int) -> ov.Node:
    """A scalar of 64 bits: an axis, an index."""
    return ops.constant(np.int64(value))


def int32(value: int) -> ov.Node:
    """A scalar of 32 bits."""
    return ops.constant(np.int32(value))


def integers(*values: int) -> ov.Node:
    """A shape, or axes."""
    return ops.constant(np.array(values, np.int64))


def empty(dtype: type[np.generic]) -> ov.Node:
    """No numbers: how an optional input is left out."""
    return ops.constant(np.zeros(0, dtype))


def slice_last(x: ov.Node, begin: int, end: int, axis: int = 1) -> ov.Node:
    """Elements `begin` to `end` along the last axis, whose number `axis` is."""
    return ops.slice(x, integers(begin), integers(end), integers(1), integers(axis))


def split_last(x: ov.Node, widths: Sequence[int]) -> list[ov.Node]:
    """Parts of so many elements along the last axis, which together are all of it."""
    return [slice_last(x, end - width, end) for width, end in zip(widths, np.cumsum(widths).tolist(), strict=True)]


def activate(x: ov.Node, name: Activation) -> ov.Node:
    """The activation of that name, element by element."""
    match name:
        case "silu":
            return ops.swish(x)
        case "gelu":
            return ops.gelu(x, "erf")
        case "gelu_tanh":
            return ops.gelu(x, "tanh")
        case "relu":
            return ops.relu(x)


def rms_norm(x: ov.Node, weight: Array, epsilon: float) -> ov.Node:
    """RMSNorm (Zhang and Sennrich, 2019) over the last axis."""
    mean = ops.reduce_mean(ops.power(x, float32(2)), integers(-1), keep_dims=True)
    scale = ops.divide(float32(1), ops.sqrt(ops.add(mean, float32(epsilon))))
    return ops.multiply(ops.multiply(x, scale), ops.constant(weight[None]))


def layer_norm(x: ov.Node, weight: Array, bias: Array, epsilon: float) -> ov.Node:
    """Layer normalisation (Ba et al., 2016) over the last axis."""
    spread = ops.mvn(x, integers(-1), normalize_variance=True, eps=epsilon, eps_mode="inside_sqrt")
    return ops.add(ops.multiply(spread, ops.constant(weight)), ops.constant(bias))
