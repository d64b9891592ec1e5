"""Rules of the house that no linter knows."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
TEST_FILES = sorted((ROOT / "tests").rglob("test_*.py"))


def _tests(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
            yield node


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_says_what_it_shows(path: Path) -> None:
    """Each test has a docstring: what would be wrong if it failed."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    silent = [f"{path.name}:{test.lineno} {test.name}" for test in _tests(tree) if not ast.get_docstring(test)]
    assert silent == []


def test_every_make_target_is_in_its_help() -> None:
    """A target a person may call says what it does after `##`."""
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.findall(r"^\.PHONY: (\S+)$", makefile, re.MULTILINE))
    helped = set(re.findall(r"^([a-z-]+):.*## \S", makefile, re.MULTILINE))
    assert phony == helped
    assert {"serve", "test", "test-all", "lint", "bench", "docs", "dist"} <= helped


def test_the_pins_are_exact_and_portable() -> None:
    """Each constraint is `name==version`, without a local version that only one index has."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    wrong = [line for line in lines if not line.startswith("#") and not re.fullmatch(r"[\w.-]+==[\w.!]+", line)]
    assert wrong == []


def test_every_direct_dependency_is_bounded_and_pinned() -> None:
    """Each requirement has a floor and a ceiling, and the constraints file pins it within them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    pins = {_normal(name): version for name, version in pairs}
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in (Requirement(text) for group in groups for text in group):
        operators = sorted(specifier.operator for specifier in requirement.specifier)
        assert operators == ["<", ">="], requirement
        if requirement.name != "pip":  # comes with the environment; `pip freeze` leaves it out
            assert requirement.specifier.contains(pins[_normal(requirement.name)]), requirement


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
