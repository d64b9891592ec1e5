"""Evaluation harnesses as their makers publish them, unchanged, each against the local engine."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.checks import Report, checks_of, run_checks
from tests.clients.conftest import Provided

CLIENTS = ("lm_eval_harness", "inspect_tasks")
CASES = [(client, check) for client in CLIENTS for check in checks_of(client)]

# More than a gigabyte, for tens of seconds of checks.
pytestmark = [pytest.mark.clients, pytest.mark.nightly, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def report(provided: Provided, smollm2_f32: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Report]:
    """`report(client)`: how its checks went; they run at the first call. lm_eval counts with the model's tokenizer."""
    folder: Path = tmp_path_factory.mktemp("checks")
    more = {"INTERLACE_TOKENIZER": str(smollm2_f32)}
    return functools.cache(lambda client: run_checks(client, "harnesses", provided, folder, **more))


@pytest.mark.parametrize(("client", "check"), CASES, ids=lambda value: value.removeprefix("test_"))
def test_the_harness_finds_what_it_expects(client: str, check: str, report: Callable[[str], Report]) -> None:
    """The check of that name, by the harness' own logs and results, passes in its environment."""
    report(client).of(check)
