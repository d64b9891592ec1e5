"""One scripted provider for all tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.provider import Provider, running_provider


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    """A provider that does what the model's name says."""
    with running_provider() as running:
        yield running
