"""The real model, loaded once in each worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from interlace.engines.core import Core
from tests.support.driving import load


@pytest.fixture(scope="session")
def decoder(smollm2_gguf: Path) -> Core:
    """SmolLM2 at f32 from its GGUF file."""
    return load(smollm2_gguf)
