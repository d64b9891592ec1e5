"""Checks of a client are tests that pytest runs in the client's own environment; here each becomes one of ours.

`inside/NAME.py` holds them. They are run once, together, and told from pytest's report.
"""

from __future__ import annotations

import ast
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.conftest import Provided, run_in
from tests.clients.environments import python_of

INSIDE = Path(__file__).parent / "inside"
_OPTIONS = ("-q", "-p", "no:cacheprovider", "-c", "pytest.ini", "--rootdir", ".", "--tb=short")


def checks_of(client: str) -> list[str]:
    """The names of a client's checks, read without importing them: what they import is not here."""
    tree = ast.parse((INSIDE / f"{client}.py").read_text())
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    assert all(ast.get_docstring(check) for check in found), f"each check of {client} says what it shows"
    return [check.name for check in found]


@dataclass(frozen=True)
class Report:
    """How each check went: empty text, or what failed (a check of several cases: each that failed)."""

    failures: dict[str, str]
    output: str

    def of(self, check: str) -> None:
        """Pass or fail as the check did inside."""
        if check not in self.failures:
            pytest.fail(f"{check} did not run inside:\n{self.output}")
        if self.failures[check]:
            pytest.fail(self.failures[check], pytrace=False)


def run_checks(client: str, group: str, provided: Provided, folder: Path, **more: str) -> Report:
    """Run all checks of a client in the environment `group`; `more` is added to the process' environment."""
    junit = folder / f"{client}.xml"
    python = python_of(group)
    command = [
        str(python),
        "-m",
        "pytest",
        *_OPTIONS,
        f"--junitxml={junit}",
        f"--basetemp={folder / client}",
        f"{client}.py",
    ]
    env = {**provided.environment, "PYTHONDONTWRITEBYTECODE": "1", **more}
    done = run_in(python, command, env, INSIDE)
    failures: dict[str, str] = {}
    for case in ET.parse(junit).iter("testcase") if junit.exists() else ():
        name = case.get("name", "").partition("[")[0]
        said = [part.text or part.get("message", "") for part in case if part.tag in {"failure", "error", "skipped"}]
        failures[name] = "\n\n".join([text for text in (failures.get(name, ""), *said) if text])
    return Report(failures, done.stdout + done.stderr)
