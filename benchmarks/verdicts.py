"""What the contest's figures say: ratios beside their goals, and shares of what the machine can do."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.contestants import GENAI, PRECISIONS, VLLM, VLLM_BF16, adapted, ours
from benchmarks.figures import AtMost, Comparison, Rate, compare

# SmolLM2-135M: 134.5 million weights, of which each token multiplies every one; the embedding is the head.
WEIGHTS = 134_515_008
ADAPTER_WEIGHTS = 2_442_240  # of rank 8 on all modules
BYTES = {"f32": 4.0, "fp32": 4.0, "bf16": 2.0, "int8": 1.0, "int4": 0.5625, "file": 0.625}
LEAST_AGREEMENT = 98.5
WIDE = "32 streams"


def judge(rates: Sequence[Rate]) -> list[Comparison]:
    """The ratios that were promised, and those that explain them."""
    found: list[Comparison] = []

    def hold(phase: str, contestant: str, against: str, goal: float | AtMost | None, shape: str = "") -> None:
        chosen = [rate for rate in rates if rate.phase == phase and shape in ("", rate.shape)]
        found.extend(compare(chosen, contestant, against, goal))

    for precision, theirs, least in (("f32", VLLM, 3.6), ("bf16", VLLM_BF16, 4.2)):
        base = ours(precision)
        hold("decode", base, theirs, 1.6)
        hold("decode", adapted(base), adapted(theirs), least, WIDE)
        hold("beside_all", adapted(base), base, 0.85, WIDE)
        hold("beside_qv", adapted(base, "qv"), base, 0.95, WIDE)
        hold("flow", adapted(base, "many"), base, 0.75)
        hold("decode", adapted(theirs), theirs, None, WIDE)
    for shape, least in ((WIDE, 0.9), ("1 stream", 0.8)):
        if best := _best(rates, shape):
            hold("decode", best, GENAI, least, shape)
    for against in dict.fromkeys(rate.contestant for rate in rates if not rate.contestant.startswith("interlace")):
        for phase in ("arrive", "late"):
            hold(phase, _alike(against), against, AtMost(1.0), WIDE)
    return found


def _best(rates: Sequence[Rate], shape: str) -> str | None:
    """The fastest of ours among those that are exact enough, as `precision: auto` takes it for so many streams."""
    exact = {r.contestant for r in rates if r.phase == "agreement" and r.spread.median >= LEAST_AGREEMENT}
    fast = {r.contestant: r.spread.median for r in rates if r.phase == "decode" and r.shape == shape}
    able = [ours(precision) for precision in PRECISIONS if ours(precision) in exact & fast.keys()]
    return max(able, key=lambda name: fast[name], default=None)


def _alike(peer: str) -> str:
    """Which of ours computes as that peer does."""
    if peer == GENAI:  # rounds weights and activations to eight bits
        return ours("int8")
    if peer.endswith("int4"):
        return ours("file")
    base = ours("bf16" if "bf16" in peer else "f32")
    return adapted(base) if "adapters" in peer else base


def shares(rates: Sequence[Rate], limits: dict[str, float] | None) -> list[Rate]:
    """Per cent of the machine's multiply-adds, and of its bytes a second, that decoding uses: weights, and adapters,
    are read once a step, and each token multiplies all of them. What else is read, as the cache, is not counted."""
    found = []
    for rate in rates if limits else []:
        words = rate.contestant.replace(",", "").split()
        kind = next((word for word in words if word in BYTES), "file" if rate.contestant == GENAI else "f32")
        adapters = 0 if "adapters" not in words else ADAPTER_WEIGHTS
        if rate.phase != "decode" or "on" in words or not limits:
            continue
        streams = int(rate.shape.split()[0])
        whole = limits["GFLOP/s, bf16" if kind == "bf16" else "GFLOP/s, f32"] * 1e9
        step = BYTES[kind] * WEIGHTS + (BYTES[kind] if kind == "bf16" else 4.0) * adapters * streams
        ratios = {
            "share_arithmetic": 2 * (WEIGHTS + adapters) / whole,
            "share_bytes": step / streams / (limits["GB/s"] * 1e9),
        }
        for phase, each in ratios.items():
            values = tuple(100 * each * value for value in rate.values)
            found.append(Rate(phase, rate.shape, rate.contestant, values))
    return found
