"""One gateway with scripted engines for the tests of this folder, and the `endpoint` the conformance suite runs on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from interlace.config import GuardSettings, LimitSettings, ModelSettings, Settings
from interlace.engines.fields import ALL_KEPT
from tests.support.gateway_thread import Gateway, running_gateway
from tests.support.scripted_engine import ScriptedEngine


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server the conformance suite can be pointed at."""

    base_url: str
    key: str
    model: str
    embedding_model: str


def engines() -> dict[str, ScriptedEngine]:
    """One engine per way to behave."""
    return {
        "scripted": ScriptedEngine(),
        "seeing": ScriptedEngine(fates=ALL_KEPT),
        "leaky": ScriptedEngine(tokens=("Well", ", op", "en se", "same", " and", " more")),
        "held": ScriptedEngine(held=True),
        "broken": ScriptedEngine(fail_after=2),
        "loading": ScriptedEngine(state="loading"),
        "embedder": ScriptedEngine(embeds=True),
        "reranker": ScriptedEngine(labels=("relevant",)),
        "classifier": ScriptedEngine(labels=("good", "bad")),
        "endless": ScriptedEngine(tokens=("word ",) * 3000, delay=0.002),
    }


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """A gateway with every scripted engine, a deny pattern and small limits."""
    made = engines()
    settings = Settings(
        home=Path("/nonexistent"),
        models=tuple(ModelSettings(name=name, checkpoint=name) for name in made),
        guards=GuardSettings(max_input_characters=20_000, deny=("open sesame",)),
        limits=LimitSettings(body_bytes=100_000, sequences=64, body_seconds=2, reader_seconds=2),
        drain_seconds=5,
    )
    with running_gateway(settings, made) as running:
        yield running


@pytest.fixture
def endpoint(gateway: Gateway) -> Endpoint:
    """The scripted server, for the conformance suite; a module with a real one overrides this."""
    return Endpoint(f"{gateway.url}/v1", gateway.key, "scripted", "embedder")
