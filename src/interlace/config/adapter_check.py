"""Public names of adapters, `base:adapter`, and what can be wrong with them: names that mean two things, and adapters
and routes that stand behind two walls."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from interlace.config.values import shown

Fault = tuple[str, str, str]
"""The setting's path, what is wrong with it, the mend."""

Entries = Sequence[Mapping[str, Any]]
"""Models or routes as the file has them, values not built yet."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LONGEST_NAME = 128
"""Of a public name, as of any model's."""


def public_name(model: str, adapter: str) -> str:
    """What callers put into `model` for an adapter: the base's name, a colon, its own, which has no colon in it."""
    return f"{model}:{adapter}"


def is_adapter_name(name: str) -> bool:
    """Whether an adapter may be called so among those of its model."""
    return _NAME.fullmatch(name) is not None


def owners_of(models: Entries) -> dict[str, str]:
    """Public name → owner ("": everybody's) of every adapter that models of the file have."""
    return {
        public_name(str(model.get("name")), str(adapter.get("name"))): str(adapter.get("owner") or "")
        for model in models
        for adapter in model.get("adapters") or ()
    }


def faults_of_adapters(models: Entries, routes: Entries) -> Iterator[Fault]:
    """Of models and routes as the file has them."""
    taken = {
        str(entry.get("name")): what for what, entries in (("model", models), ("route", routes)) for entry in entries
    }
    for i, model in enumerate(models):
        for j, adapter in enumerate(model.get("adapters") or ()):
            where, name = f"models[{i}].adapters[{j}].name", adapter.get("name")
            if not isinstance(name, str):
                continue
            public = public_name(str(model.get("name")), name)
            if not is_adapter_name(name) or len(public) > LONGEST_NAME:
                mend = f"Use letters, digits and . _ -, at most 64, and {LONGEST_NAME} with the model's name before it"
                yield where, f"{shown(repr(name))} cannot be an adapter's name", mend
            elif public in taken:
                yield where, f"{shown(public)} is a {taken[public]}'s name too", "Give one of them another name"
            owner, its = str(adapter.get("owner") or ""), str(model.get("owner") or "")
            if owner and its and owner != its:
                problem = f"is not {shown(its)}, which its model belongs to, so nobody could use it"
                yield f"models[{i}].adapters[{j}].owner", problem, "Leave it out: it is the model's owner's"
    owners = {str(model.get("name")): str(model.get("owner") or "") for model in models}
    owners |= {name: owner or owners.get(name.rpartition(":")[0], "") for name, owner in owners_of(models).items()}
    for i, route in enumerate(routes):
        behind = sorted({owners.get(name, "") for name in _targets(route)} - {""})
        if len(behind) > 1:
            problem = f"leads to models or adapters of {shown(' and '.join(behind))}, so nobody could use it"
            yield f"routes[{i}].name", problem, "Make a route for each organisation"


def _targets(route: Mapping[str, Any]) -> Iterator[str]:
    for part in ("models", "fallbacks"):
        for one in route.get(part) or ():
            yield str(one.get("model"))
    for part in ("canary", "shadow"):
        yield str((route.get(part) or {}).get("model"))
