"""Which precision `auto` is: the fastest on this machine of those that pass the checkpoint's gate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from interlace.models import AgreementGate, Measurement, Trial

ALIKE = 0.95  # of the fastest speed: what comes so near is no slower, as far as a short measurement can tell


@dataclass(frozen=True, slots=True)
class Choice:
    """A precision, and why it is the one, in words for a log."""

    precision: str
    why: str


def passes(trial: Trial, gate: AgreementGate) -> bool:
    """Whether it agrees with the reference as often as the gate wants, over as many tokens."""
    return not trial.problem and gate.passed_by(trial.agreed, trial.tokens)


def speed_at(trial: Trial, streams: int, many: int) -> float:
    """Tokens a second at so many streams: a step takes longer by the same for each, from one to `many`; beyond, the
    speed of `many`."""
    if streams >= many or many == 1:
        return trial.many
    first, last = 1 / trial.one, many / trial.many
    return streams / (first + (last - first) * (streams - 1) / (many - 1))


def choose(
    measurement: Measurement, gate: AgreementGate, streams: int, fits: Callable[[str], bool] = lambda _: True
) -> Choice:
    """The fastest at `streams` of those that pass and fit into memory. Of those within 5 % of it the one that agrees
    most, then takes least memory. Where none passes, the file's own."""

    def speed(trial: Trial) -> float:
        return speed_at(trial, streams, measurement.streams)

    passing = [trial for trial in measurement.trials if passes(trial, gate) and fits(trial.precision)]
    if not passing:
        return Choice("file", f"no precision passes; {_others(measurement, gate, '')}")
    fastest = max(map(speed, passing))
    near = [trial for trial in passing if speed(trial) >= ALIKE * fastest]
    best = max(near, key=lambda trial: (trial.agreed / trial.tokens, -trial.bytes))
    said = [f"{speed(best):,.0f} tokens/s at {streams} {'stream' if streams == 1 else 'streams'}"]
    if others := [f"{trial.precision} {speed(trial):,.0f}" for trial in passing if trial is not best]:
        said.append(f"({', '.join(others)})")
    said.append(f"and agreement with {measurement.reference} on {best.percent:.1f} % of {best.tokens:,} tokens")
    refused = _others(measurement, gate, "; ")
    return Choice(best.precision, " ".join(said) + refused)


def _others(measurement: Measurement, gate: AgreementGate, before: str) -> str:
    """Those that do not pass, each with the reason."""
    reasons = []
    for trial in measurement.trials:
        if trial.problem:
            reasons.append(f"{trial.precision}: {trial.problem}")
        elif not passes(trial, gate):
            reasons.append(
                f"{trial.precision} agrees on {trial.percent:.1f} % of {trial.tokens:,} tokens, the gate is "
                f"{gate.percent:g} % of {gate.tokens:,}"
            )
    return before + "; ".join(reasons) if reasons else ""
