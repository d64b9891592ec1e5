"""In what servers that speak OpenAI's API differ from each other, as their makers document it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from urllib.parse import urlsplit

from interlace.config import ModelSettings
from interlace.engines.remote.providers.openai_messages import Manners
from interlace.engines.types import Options

EXTENSIONS = ("top_k", "min_p", "repetition_penalty", "ignore_eos")
_ALL_OPTIONS = frozenset(Options.__struct_fields__)
_OFFICIAL = ("api.openai.com", ".openai.azure.com", ".services.ai.azure.com", ".cognitiveservices.azure.com")


@dataclass(frozen=True, slots=True)
class Peculiarities:
    """One server. `sampling` names what it knows of `EXTENSIONS`, `options` what it knows of `Options`; `structured`
    and `prefill` are vLLM's; `seed` and `standard` are what it calls the seed and the tier that
    everybody gets; `refused` are fields (as in `fields.NAMES`, with groups)
    that it passes over or refuses."""

    manners: Manners = field(default_factory=Manners)
    sampling: frozenset[str] = frozenset()
    structured: bool = False
    prefill: bool = False
    options: frozenset[str] = _ALL_OPTIONS
    reasoning: bool = True
    stream_options: bool = True
    seed: str = "seed"
    standard: str = "default"
    refused: tuple[str, ...] = ()


_PRESETS: Mapping[str, Peculiarities] = MappingProxyType(
    {
        "mistral": Peculiarities(
            manners=Manners(developer=False),
            options=frozenset(),
            stream_options=False,  # its streams end with the usage unasked
            seed="random_seed",
            refused=(
                "message.name", "part.audio", "sampling.logit_bias", "sampling.logprobs", "prompt", "prompt_ids",
            ),
        ),
        "groq": Peculiarities(
            manners=Manners(developer=False),
            options=frozenset({"service_tier", "user"}),
            standard="on_demand",
            refused=(
                "message.name", "n", "part.file", "part.audio", "sampling.logit_bias", "sampling.logprobs", "prompt",
                "prompt_ids",
            ),
        ),
        "together": Peculiarities(
            manners=Manners(developer=False),
            sampling=frozenset({"top_k", "min_p", "repetition_penalty"}),
            options=frozenset(),
            refused=("part.file", "part.audio", "sampling.logprobs", "prompt_ids"),
        ),
        "ollama": Peculiarities(
            manners=Manners(developer=False),
            options=frozenset(),
            refused=(
                "message.name", "n", "part.image.url", "part.file", "part.audio", "sampling.logit_bias",
                "sampling.logprobs", "prompt_ids", "tool_choice", "parallel_tool_calls",
            ),
        ),
        "vllm": Peculiarities(manners=Manners(developer=False), options=frozenset(), refused=("part.file",)),
    }
)  # fmt: skip


def official(settings: ModelSettings) -> bool:
    """Whether it is OpenAI's own service, at OpenAI or Azure."""
    host = urlsplit(settings.base_url).hostname or ""
    return settings.engine == "azure" or host.endswith(_OFFICIAL)


@functools.lru_cache(maxsize=1024)
def peculiarities_of(settings: ModelSettings) -> Peculiarities:
    """What the server of these settings is like."""
    made = _PRESETS.get(settings.engine, Peculiarities())
    manners = made.manners
    if settings.engine not in _PRESETS:
        manners = dataclasses.replace(manners, signatures=not official(settings))
    marks = official(settings) if settings.cache_marks is None else settings.cache_marks
    manners = dataclasses.replace(manners, cache_marks=marks)
    if settings.extensions:
        manners = dataclasses.replace(manners, thoughts=True)
        made = dataclasses.replace(made, sampling=frozenset(EXTENSIONS), structured=True, prefill=True)
    return dataclasses.replace(made, manners=manners)
