"""Clients as their makers publish them, unchanged, each against the local engine: `inside/` says what they do."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.checks import Report, checks_of, run_checks
from tests.clients.conftest import Provided

CLIENTS = (
    "openai_sdk", "responses_api", "anthropic_sdk", "langchain_chat", "langchain_messages", "pydantic_agents",
    "litellm_client", "messages_by_others", "llm_command",
)  # fmt: skip
CASES = [(client, check) for client in CLIENTS for check in checks_of(client)]

pytestmark = [pytest.mark.clients, pytest.mark.timeout(1200)]  # the first makes the environment and runs all checks


@pytest.fixture(scope="module")
def report(provided: Provided, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Report]:
    """`report(client)`: how its checks went; they run at the first call."""
    folder: Path = tmp_path_factory.mktemp("checks")
    return functools.cache(lambda client: run_checks(client, "sdks", provided, folder))


@pytest.mark.parametrize(("client", "check"), CASES, ids=lambda value: value.removeprefix("test_"))
def test_the_client_finds_what_it_expects(client: str, check: str, report: Callable[[str], Report]) -> None:
    """The check of that name, by the client's own types and exceptions, passes in the client's environment."""
    report(client).of(check)
