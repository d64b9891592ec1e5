"""Tokenizers and templates of the real checkpoints, loaded once."""

from __future__ import annotations

from pathlib import Path

import pytest

from interlace.engines.local.constraints import GrammarCompiler
from interlace.engines.local.template import ChatTemplate, load_template
from interlace.engines.local.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path) -> Tokenizer:
    """SmolLM2's tokenizer, built from its GGUF file."""
    return load_tokenizer(smollm2_gguf)


@pytest.fixture(scope="session")
def smollm2_template(smollm2_gguf: Path, smollm2: Tokenizer) -> ChatTemplate:
    """SmolLM2's own chat template."""
    template = load_template(smollm2_gguf, smollm2)
    assert template is not None
    return template


@pytest.fixture(scope="session")
def compiler(smollm2: Tokenizer) -> GrammarCompiler:
    """Grammars over SmolLM2's vocabulary."""
    return GrammarCompiler(smollm2)
