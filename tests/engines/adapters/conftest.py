"""Lets the hosts that these tests start import the toy core."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from interlace.engines.local.kernel import compile_kernel
from tests.support.hosts import ROOT


@pytest.fixture(autouse=True)
def importable_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host does not import from its working directory, so `tests` must be on its path."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))


@pytest.fixture(scope="session")
def compiled_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the operation for adapters has been compiled."""
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        pytest.skip("there is no C++ compiler here")
    home = tmp_path_factory.mktemp("home")
    compile_kernel(home)
    return home


@pytest.fixture(scope="session", params=["stacked", "compiled"])
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home without the compiled operation, and one with it: adapters mean the same in both."""
    if request.param == "stacked":
        return tmp_path_factory.mktemp("empty")
    home: Path = request.getfixturevalue("compiled_home")
    return home
