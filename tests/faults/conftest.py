"""A shared server of a decoder and an embedder for each file of this folder; some start their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.served import Served, decoder, embedder, served
from tests.support.stores import store_fixture


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path, minilm: Path) -> Iterator[Served]:
    """`talker` and `embedder`, ready."""
    with served(tmp_path_factory.mktemp("both"), [decoder(smollm2_gguf), embedder(minilm)]) as there:
        yield there


store = store_fixture(pytest.mark.nightly)  # each start of a server takes a second, and one on PostgreSQL two
