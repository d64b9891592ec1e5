"""Lets the hosts that these tests start import the toy core."""

from __future__ import annotations

import os

import pytest

from tests.support.hosts import ROOT


@pytest.fixture(autouse=True)
def importable_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host does not import from its working directory, so `tests` must be on its path."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
