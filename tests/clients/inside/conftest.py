"""What the checks of all clients use. This runs in a client's own environment: nothing of Interlace is there."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

FRANCE = "What is the capital of France?"
BAD_KEY = "il-" + "0" * 40


@dataclass(frozen=True)
class Server:
    """The server, as its users know it."""

    url: str
    key: str
    model: str
    embedder: str
    context: int

    @property
    def v1(self) -> str:
        """What OpenAI's clients call the base URL."""
        return f"{self.url}/v1"

    def bill(self, id: str) -> dict[str, int]:
        """Tokens by kind of one request, as billed, by the id of its answer."""
        headers = {"authorization": f"Bearer {self.key}"}
        response = httpx.get(f"{self.v1}/usage/{id}", headers=headers, trust_env=False, verify=False, timeout=60)
        assert response.status_code == 200, response.text
        spent: dict[str, Any] = response.json()
        assert spent["cost_nanos"] > 0
        return dict(spent["tokens"])


@pytest.fixture
def server() -> Server:
    """Where the server is, and how long its model's context."""
    env = os.environ
    return Server(
        env["INTERLACE_URL"], env["INTERLACE_API_KEY"], env["INTERLACE_MODEL"], env["INTERLACE_EMBEDDING_MODEL"],
        int(env["INTERLACE_CONTEXT"]),
    )  # fmt: skip


@pytest.fixture
def agrees(server: Server) -> Callable[..., None]:
    """`agrees(id, prompt, completion)`: what a client counted is what was billed."""

    def check(id: str, prompt: int, completion: int) -> None:
        tokens = server.bill(id)
        assert (prompt, completion) == (tokens["prompt"], tokens["completion"])

    return check
