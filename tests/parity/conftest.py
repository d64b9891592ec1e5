"""The servers and gateways of the parity table, started once for each worker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from interlace.config import FallbackSettings, HedgeSettings, MemberSettings, PartSettings, ReuseSettings, RouteSettings
from tests.parity.rig import Rig, Servers, rig, running_servers
from tests.parity.table import SAYINGS


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Every provider, on loopback."""
    with running_servers(SAYINGS) as running:
        yield running


def _route(name: str, first: str, *others: str, **more: object) -> RouteSettings:
    models = (MemberSettings(model=first),)
    return RouteSettings(name, models, tuple(FallbackSettings(model=other) for other in others), **more)  # type: ignore[arg-type]


ROUTES = (
    _route("primary", "openai-text"),
    _route("fallback", "local-broken", "anthropic-text"),
    _route("hedge", "local-slow", "openai-text", hedge=HedgeSettings(percentile=50, least_seconds=0.01)),
    _route("open-first", "local-text", "bedrock-text", policy="open_first"),
    _route("reuse", "openai-text", reuse=ReuseSettings(seconds=600)),
    _route("shadow", "local-reads", shadow=PartSettings("local-shadow", 100)),
)


def _rig_of(kind: str) -> Any:
    @pytest.fixture(scope="session", name=f"{kind}_rig")
    def made(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
        with rig(kind, servers, SAYINGS, tmp_path_factory.mktemp(kind), ROUTES) as running:
            yield running

    return made


deny_rig, mask_rig, refuse_rig = map(_rig_of, ("deny", "mask", "refuse"))


@pytest.fixture(params=["deny", "mask", "refuse"])
def behind(request: pytest.FixtureRequest) -> Rig:
    """The gateway with each kind of guard; the servers remember nothing of what others asked them."""
    found: Rig = request.getfixturevalue(f"{request.param}_rig")
    found.servers.forget()
    return found
