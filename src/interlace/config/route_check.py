"""What is wrong with routes as a whole: names that mean nothing or two things, and routes that can never answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from interlace.config.values import close_to, shown

Fault = tuple[str, str, str]
"""The setting's path, what is wrong with it, the mend."""


def faults_of_routes(
    routes: Sequence[Mapping[str, Any]],
    plans: Sequence[Mapping[str, Any]],
    served: Sequence[str],
    added: Sequence[str] = (),
) -> Iterator[Fault]:
    """Of routes and plans as the file has them, values not built yet; `served` are the names of its models, and `added`
    those of models that were added by command, which give way to the file's names."""
    planned = [str(plan.get("name")) for plan in plans]
    for i, route in enumerate(routes):
        where, name = f"routes[{i}]", route.get("name")
        if name in served:
            yield f"{where}.name", f"{shown(repr(name))} is a model's name too", "Give the route a name of its own"
        members = route.get("models") or ()
        if not members and "models" in route:
            yield f"{where}.models", "is empty", "Name at least one model: `- model: NAME`"
        elif members and all(member.get("weight") == 0 for member in members):
            yield f"{where}.models", "has no weight above zero, so it would get no requests", "Raise one of them"
        yield from _unknown_names(route, where, [*served, *added])
        yield from _unknown_plans(route, where, planned)
        for part in ("canary", "shadow"):
            told = route.get(part) or {}
            if told.get("percent") and not told.get("model"):
                yield f"{where}.{part}", "names no model", "Add `model:`"


def _unknown_names(route: Mapping[str, Any], where: str, served: Sequence[str]) -> Iterator[Fault]:
    entries = [(f"{where}.{part}.model", (route.get(part) or {}).get("model")) for part in ("canary", "shadow")]
    for part in ("models", "fallbacks"):
        entries += [(f"{where}.{part}[{i}].model", one.get("model")) for i, one in enumerate(route.get(part) or ())]
    for place, name in entries:
        if isinstance(name, str) and name not in served:
            close = close_to(name, served) or f" Served are: {shown(', '.join(served))}"
            yield place, f"names {shown(repr(name))}, which is not among the models", close.strip()


def _unknown_plans(route: Mapping[str, Any], where: str, planned: Sequence[str]) -> Iterator[Fault]:
    """Plans may also be made by command, so only a name that is close to one of the file is taken for a slip."""
    for part in ("models", "fallbacks"):
        for i, one in enumerate(route.get(part) or ()):
            for j, name in enumerate((one.get("when") or {}).get("plans") or ()):
                if isinstance(name, str) and name not in planned and (close := close_to(name, planned)):
                    yield f"{where}.{part}[{i}].when.plans[{j}]", f"names no plan: {shown(repr(name))}", close.strip()
