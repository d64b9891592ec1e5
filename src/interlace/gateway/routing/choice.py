"""Which models of a route are asked, in which order, and why. Pure: the same facts and seed give the same choice.

    canary, for its part of the requests
    the models: by weight, price, speed, or local ones first
    the fallbacks, in their order
    and last of all whoever the breaker takes for broken

Weights are drawn by rendezvous hashing: each model draws a number from the seed and its own name, so when one leaves or
comes, only its own conversations move. A seed that is random gives every model its share; one that is made of the
conversation keeps it where it is.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from zoneinfo import ZoneInfo

from interlace.config import MemberSettings, RouteSettings, WhenSettings
from interlace.errors import EngineUnavailable, Forbidden, InterlaceError, InvalidRequest
from interlace.gateway.routing.facts import Asked, Standing
from interlace.ledger.prices import most

CHARACTERS_PER_TOKEN = 4  # about; only to compare prices
LIKELY_TOKENS = 256  # of an answer whose length is left open; only to compare prices
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


@dataclass(frozen=True, slots=True)
class Step:
    """A model to ask, and why at this place. `judged`: its answer is only given if it will do."""

    model: str
    why: str
    judged: bool = False
    broken: bool = False  # its breaker is open: it is asked once, for want of a better one


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A model that is not asked, and why."""

    model: str
    why: str
    problem: InterlaceError | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """What a route would do with a request. `shadow`: the model that is asked as well, unseen."""

    steps: tuple[Step, ...]
    passed_over: tuple[PassedOver, ...] = ()
    shadow: str | None = None


def choose(route: RouteSettings, asked: Asked, models: Mapping[str, Standing], seed: str) -> Choice:
    """The steps of a request, best first, each model at most once; none where no model can be asked.

    `models` has the standing of every model that the route names.
    """
    wanted = [*_canary(route, seed), *_members(route, asked, models, seed), *_fallbacks(route, asked)]
    steps: dict[str, Step] = {}
    passed_over: list[PassedOver] = []
    for one in wanted:
        if isinstance(one, PassedOver):
            passed_over.append(one)
        elif (problem := models[one.model].problem) is not None:
            passed_over.append(PassedOver(one.model, problem.message, problem))
        else:
            steps.setdefault(one.model, one)
    ordered = _numbered(_broken_last(steps.values(), models))
    if route.policy == "open_first":
        ordered = [replace(step, judged=models[step.model].local) for step in ordered[:-1]] + ordered[-1:]
    gone = tuple(one for one in passed_over if one.model not in steps)
    return Choice(tuple(ordered), gone, _shadow(route, models, seed))


def nobody(choice: Choice) -> InterlaceError:
    """Why a choice has no step, as its caller is told: the request can wait, else it must be another one."""
    problems = [one.problem for one in choice.passed_over if one.problem is not None]
    for kind in (EngineUnavailable, Forbidden, InterlaceError):
        for problem in problems:
            if isinstance(problem, kind):
                return problem
    return InvalidRequest(
        "No model of this route is for such a request. Ask for less, or name another model; GET /v1/models lists them.",
        param="model",
        code="no_model_for_request",
    )


def draw(seed: str, label: str) -> float:
    """A number in (0, 1) that depends on both texts and on nothing else."""
    digest = hashlib.blake2b(f"{label}\0{seed}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest) + 0.5) / 2**64


# --- who --------------------------------------------------------------------------------------------------------


def _canary(route: RouteSettings, seed: str) -> Iterator[Step]:
    if draw(seed, "canary") * 100 < route.canary.percent:
        yield Step(route.canary.model, "canary")


def _members(
    route: RouteSettings, asked: Asked, models: Mapping[str, Standing], seed: str
) -> Iterator[Step | PassedOver]:
    fitting: list[tuple[int, MemberSettings]] = []
    for place, member in enumerate(route.models):
        if why := unmet(member.when, asked):
            yield PassedOver(member.model, why)
        elif member.weight == 0:
            yield PassedOver(member.model, "its weight is 0")
        else:
            fitting.append((place, member))

    def by_weight(entry: tuple[int, MemberSettings]) -> float:
        """An exponential race: who draws the least goes first, and each wins as often as its weight says."""
        place, member = entry
        return -math.log(draw(seed, f"{member.model}#{place}")) / member.weight

    def cost(entry: tuple[int, MemberSettings]) -> float:
        return likely_nanos(models[entry[1].model], asked)

    def wait(entry: tuple[int, MemberSettings]) -> float:
        return models[entry[1].model].first_token_seconds or 0.0  # one that is not known yet is tried

    fitting.sort(key=by_weight)
    if route.policy == "cheapest":
        fitting.sort(key=cost)
    elif route.policy == "fastest":
        fitting.sort(key=wait)
    elif route.policy == "open_first":
        fitting.sort(key=lambda entry: (not models[entry[1].model].local, entry[0]))
    for _, member in fitting:
        yield Step(member.model, "")


def _fallbacks(route: RouteSettings, asked: Asked) -> Iterator[Step | PassedOver]:
    for fallback in route.fallbacks:
        if why := unmet(fallback.when, asked):
            yield PassedOver(fallback.model, why)
        else:
            yield Step(fallback.model, "")


def _broken_last(steps: Iterable[Step], models: Mapping[str, Standing]) -> list[Step]:
    """A breaker never takes the last model away: who is taken for broken is asked when all others have failed."""
    marked = [replace(step, broken=models[step.model].breaker in {"open", "probing"}) for step in steps]
    return sorted(marked, key=lambda step: step.broken)


def _numbered(steps: Iterable[Step]) -> list[Step]:
    """Each with its reason: the canary, the first of the others, and those after it."""
    found: list[Step] = []
    for place, step in enumerate(steps):
        why = step.why if step.why and place == 0 else f"fallback {place}" if place else "primary"
        found.append(replace(step, why=why))
    return found


def _shadow(route: RouteSettings, models: Mapping[str, Standing], seed: str) -> str | None:
    name = route.shadow.model
    if not name or models[name].problem is not None or draw(seed, "shadow") * 100 >= route.shadow.percent:
        return None
    return name


# --- what for ----------------------------------------------------------------------------------------------------


def unmet(when: WhenSettings, asked: Asked) -> str:
    """Which condition does not hold, in words; empty where all do."""
    if when.needs and asked.needs.isdisjoint(when.needs):
        return f"only for requests that need {' or '.join(when.needs)}"
    if asked.characters < when.least_characters:
        return f"only for prompts of at least {when.least_characters} characters"
    if when.most_characters is not None and asked.characters > when.most_characters:
        return f"only for prompts of at most {when.most_characters} characters"
    if when.plans and asked.plan not in when.plans:
        return f"only for the plan {' or '.join(when.plans)}"
    if when.tags and asked.tags.isdisjoint(when.tags):
        return f"only for requests tagged {' or '.join(when.tags)}"
    if when.hours is None and not when.weekdays:
        return ""
    local = asked.utc.astimezone(ZoneInfo(when.time_zone))
    if when.hours is not None and not _within(when.hours, f"{local:%H:%M}"):
        return f"only between {when.hours} in {when.time_zone}"
    if when.weekdays and WEEKDAYS[local.weekday()] not in when.weekdays:
        return f"only on {', '.join(when.weekdays)} in {when.time_zone}"
    return ""


def _within(hours: str, now: str) -> bool:
    """The first minute counts, the last does not. A span whose end comes first goes over midnight."""
    start, _, end = hours.partition("-")
    return start <= now < end if start < end else now >= start or now < end


def likely_nanos(model: Standing, asked: Asked) -> int:
    """About what the request costs there, to compare: nobody is billed by it."""
    if model.price is None:
        return 0
    prompt = asked.characters // CHARACTERS_PER_TOKEN + 1
    answer = LIKELY_TOKENS if asked.most_tokens is None else asked.most_tokens
    return most(model.price, prompt, answer, embedding=asked.embedding)
