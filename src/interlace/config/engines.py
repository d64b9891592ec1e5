"""Which engines there are: this machine, and the providers; the one table that a new provider adds a line to."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

LOCAL = "local"
PRESETS = ("mistral", "groq", "together", "ollama", "vllm")
"""Servers that speak OpenAI's API, with their address and peculiarities filled in."""

PROVIDERS: Mapping[str, str] = MappingProxyType(
    {
        "openai": "openai",
        "azure": "azure",
        "anthropic": "anthropic",
        "bedrock": "bedrock",
        "vertex": "vertex",
        **dict.fromkeys(PRESETS, "presets"),
    }
)
"""Engine → the module in `engines/remote/providers` that speaks its format."""

REMOTE = tuple(PROVIDERS)
VLLM = "vllm"
"""The one of them that may also be started here."""
OPENAI = ("openai", "azure", *PRESETS)
"""Those that speak OpenAI's API."""
EMBEDDING = tuple(name for name in REMOTE if name not in {"anthropic", "bedrock"})
"""Those that make embeddings, too."""
ENGINES = (LOCAL, *REMOTE)
