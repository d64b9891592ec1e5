"""A plan for people, and the run beside it afterwards."""

from __future__ import annotations

from collections.abc import Sequence

from interlace.money import DOLLAR
from interlace.tuning.memory import STAGES, Job, Stage, StageMemory
from interlace.tuning.plan import Estimate, Plan, oldest

_GIB = 1 << 30


def plan_table(plan: Plan) -> str:
    """Everything a plan says, as text of a few lines."""
    size, learnt, job = plan.size, plan.learnt, plan.job
    all_of_them = size.parameters + learnt.added
    share, factor = learnt.trained / all_of_them, plan.flop / max(1, job.tokens * size.parameters)
    lines = [
        f"Trained     {_count(learnt.trained)} of {_count(all_of_them)} parameters ({share:.2%}, {learnt.method})",
        f"Tokens      {_count(job.tokens)}",
        f"Arithmetic  {plan.flop:.3g} FLOP ({factor:.2f} x parameters x tokens)",
        "",
        f"Memory on each of {job.devices} device{'s' * (job.devices != 1)}, in GiB",
        *_columns(
            [
                ("ZeRO stage", "weights, gradients, Adam", "activations", "or to score", "libraries", "in all"),
                *(_memory(one, job) for one in plan.memory if job.devices > 1 or one.stage == STAGES[0]),
            ]
        ),
    ]
    if job.devices > 1:
        lines.append("  On GPUs, each process also loads the whole base into the machine's own memory, in float32.")
    if plan.gpu_memory:
        taken = _gib(plan.gpu_memory[job.stage].bytes)
        at_once = "" if plan.gpu_rows == job.rows else f"computes {plan.gpu_rows} rows at once, and "
        lines.append(f"  A GPU {at_once}takes {taken} in all, and no libraries.")
    if plan.estimates:
        rows = [("on", "fits with", "time", "US dollars", "price of"), *map(_estimated, plan.estimates)]
        lines += ["", f"On {job.devices} of each", *_columns(rows)]
    return "\n".join(lines)


def beside(
    plan: Plan,
    *,
    seconds: float,
    memory_bytes: int | None = None,
    tokens: int | None = None,
    hardware: str = "here",
) -> str:
    """What a run took (on the clock, and its highest memory on one device) beside what was planned for `hardware`.
    `tokens` are those it was trained on, where it stopped early: the plan is cut to them."""
    share = 1.0 if tokens is None else tokens / plan.job.tokens
    rows: list[Sequence[str]] = [("", "planned", "measured")]
    found = [one for one in plan.estimates if one.hardware.name == hardware]
    planned = [_span(one.hours_low * share, one.hours_high * share) for one in found]
    rows.append(("time", planned[0] if planned else "-", _time(seconds / 3600)))
    speed = plan.flop * share / seconds / plan.job.devices / 1e9 if seconds > 0 else 0.0
    speeds = [
        f"{one.hardware.flop_per_second_low / 1e9:.3g} to {one.hardware.flop_per_second_high / 1e9:.3g}"
        for one in found
    ]
    rows.append(("GFLOP/s on each device", speeds[0] if speeds else "-", f"{speed:.3g}"))
    if memory_bytes is not None:
        rows.append(("GiB on each device", _gib(plan.memory[plan.job.stage].bytes), _gib(memory_bytes)))
    if tokens is not None:
        rows.append(("tokens", _count(plan.job.tokens), _count(tokens)))
    return "\n".join(_columns(rows))


def _memory(one: StageMemory, job: Job) -> tuple[str, ...]:
    parts = (one.states_bytes, one.activations_bytes, one.scoring_bytes, one.process_bytes, one.bytes)
    return (_stage(one.stage, job), *map(_gib, parts))


def _stage(stage: Stage, job: Job) -> str:
    """Its number, with a mark at the launcher's."""
    return f"{stage} (the launcher's)" if job.devices > 1 and stage == job.stage else str(stage)


def _estimated(one: Estimate) -> tuple[str, ...]:
    fits = "too large" if one.stage is None else "one copy" if one.stage == 0 else f"ZeRO-{one.stage}"
    dollars = "-" if one.nanos_low is None or one.nanos_high is None else _dollars(one.nanos_low, one.nanos_high)
    dated = oldest(one.hardware.prices) if one.hardware.prices else "-"
    return one.hardware.title, fits, _span(one.hours_low, one.hours_high), dollars, dated


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _count(number: int) -> str:
    for scale, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if number >= scale:
            return f"{number / scale:.4g} {letter}"
    return f"{number:,}"


def _gib(count: int) -> str:
    return f"{count / _GIB:.2f}"


_YEAR = 24 * 365
_UNITS = ((_YEAR, "years"), (48, "days"), (1, "h"), (1 / 60, "min"))  # from how many hours on


def _time(hours: float) -> str:
    unit = next((name for least, name in _UNITS if hours >= least), "s")
    number = hours / {"years": _YEAR, "days": 24, "h": 1, "min": 1 / 60, "s": 1 / 3600}[unit]
    return f"{number:,.0f} {unit}" if number >= 10 else f"{number:.2g} {unit}"


def _span(low: float, high: float) -> str:
    words = [_time(low), _time(high)]
    return words[0] if words[0] == words[1] else " to ".join(words)


def _dollars(low: int, high: int) -> str:
    """Rounded to cents, to dollars from a hundred on, upwards."""
    shown = []
    for nanos in (low, high):
        unit = DOLLAR if nanos >= 100 * DOLLAR else DOLLAR // 100
        whole = -(-nanos // unit)
        shown.append(f"{whole:,}" if unit == DOLLAR else f"{whole // 100}.{whole % 100:02}")
    return shown[0] if shown[0] == shown[1] else " to ".join(shown)
