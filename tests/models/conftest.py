"""Where pulls of these tests pull from."""

from collections.abc import Iterator

import pytest

from tests.support.file_server import FileServer, file_server


@pytest.fixture
def server() -> Iterator[FileServer]:
    """A loopback server, empty."""
    with file_server() as running:
        yield running
