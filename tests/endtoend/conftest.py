"""One real server for all files of this folder that one worker runs: SmolLM2 at f32, and MiniLM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.gateway.conftest import Endpoint
from tests.support.served import Served, decoder, embedder, served


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path, minilm: Path) -> Iterator[Served]:
    """`talker`, whose answers do not depend on what else runs (f32), and `embedder`."""
    models = [decoder(smollm2_gguf, precision="f32", context_length=2048), embedder(minilm)]
    with served(tmp_path_factory.mktemp("real"), models) as there:
        yield there


@pytest.fixture
def endpoint(real: Served) -> Endpoint:
    """The real server, in the words of the conformance suite."""
    code = real.process.poll()
    assert code is None, f"the server of all files here has ended with {code}:\n{real.log[-4000:]}"
    return Endpoint(f"{real.url}/v1", real.key, "talker", "embedder")


@pytest.fixture
def client(endpoint: Endpoint) -> Iterator[openai.OpenAI]:
    """The official SDK, without retries."""
    with openai.OpenAI(base_url=endpoint.base_url, api_key=endpoint.key, max_retries=0) as made:
        yield made
