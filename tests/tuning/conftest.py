"""A finished run for every test of a worker that only looks at one."""

from __future__ import annotations

import json

import pytest

from tests.support.tuned import Tuning


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Tuning:
    """A run that nothing disturbed."""
    tuning = Tuning(tmp_path_factory.mktemp("whole"))
    done = tuning.run("--json", "--licence", "CC0-1.0", "--source", "made up")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["name"] == "mine"
    return tuning
