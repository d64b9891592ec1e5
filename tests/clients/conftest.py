"""One real server with prices for all clients that one worker runs, and keys of several kinds."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import certifi
import httpx
import pytest

from tests.support.billing import priced
from tests.support.served import PATIENCE_SECONDS, Served, decoder, embedder, served

CONTEXT = 2048
NOWHERE = "http://127.0.0.1:9"  # the discard port: what a client asks of the world outside is refused at once


@dataclass(frozen=True)
class Provided:
    """A server as its clients see it."""

    server: Served
    poor: str  # a key whose budget holds no request
    narrow: str  # a key that may use the embedder alone

    @property
    def environment(self) -> dict[str, str]:
        """What a client's process gets: where the server is, and no way to anywhere else."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), NOWHERE)
        quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "HF_HUB_OFFLINE": "1", "PYDANTIC_AI_NO_UPDATE": "1"}
        return {
            **kept, **proxies, **quiet,
            "SSL_CERT_FILE": certifi.where(),  # one certificate: each client of theirs reads it three times
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            "INTERLACE_URL": self.server.url,
            "INTERLACE_API_KEY": self.server.key,
            "INTERLACE_POOR_KEY": self.poor,
            "INTERLACE_NARROW_KEY": self.narrow,
            "INTERLACE_MODEL": "talker",
            "INTERLACE_EMBEDDING_MODEL": "embedder",
            "INTERLACE_CONTEXT": str(CONTEXT),
        }  # fmt: skip


@pytest.fixture(scope="session")
def provided(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path, minilm: Path) -> Iterator[Provided]:
    """SmolLM2 as `talker` and MiniLM as `embedder`, both for money."""
    models = [decoder(smollm2_gguf, context_length=CONTEXT), embedder(minilm)]
    prices = [priced(model["name"]) for model in models]
    with served(tmp_path_factory.mktemp("clients"), models, prices=prices) as there:
        yield Provided(there, _key(there, budget_usd="0.000000001"), _key(there, models=["embedder"]))


def _key(there: Served, **more: Any) -> str:
    """The text of a new key."""
    response = httpx.post(
        f"{there.url}/admin/v1/keys", json={"project": "default", **more}, trust_env=False, timeout=PATIENCE_SECONDS,
        headers={"authorization": f"Bearer {there.key}"},
    )  # fmt: skip
    assert response.status_code == httpx.codes.OK, response.text
    return str(response.json()["key"])


def run_in(python: Path, command: list[str], env: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """A command with the client's environment `python` is in first on the path (`llm`, `lm_eval`, `inspect`)."""
    path = f"{python.parent}{os.pathsep}{env.get('PATH', os.defpath)}"
    return subprocess.run(
        command, env={**env, "PATH": path}, cwd=folder, capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL, timeout=600,
    )  # fmt: skip
