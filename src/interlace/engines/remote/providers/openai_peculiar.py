"""In what servers that speak OpenAI's API differ from each other, as their makers document it."""

from __future__ import annotations

import dataclasses
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


@dataclass(frozen=True, slots=True)
class Preset:
    """A server by name: what a setting that was left out is there. No `api_key`: it asks for none."""

    base_url: str
    api_key: str
    peculiar: Peculiarities
    extensions: bool = False
    max_tokens_field: str = "max_tokens"


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "mistral": Preset(
            "https://api.mistral.ai/v1",
            "${MISTRAL_API_KEY}",
            Peculiarities(
                manners=Manners(developer=False),
                options=frozenset(),
                stream_options=False,  # its streams end with the usage unasked
                seed="random_seed",
                refused=(
                    "message.name", "part.audio", "sampling.logit_bias", "sampling.logprobs", "prompt", "prompt_ids",
                ),
            ),
        ),
        "groq": Preset(
            "https://api.groq.com/openai/v1",
            "${GROQ_API_KEY}",
            Peculiarities(
                manners=Manners(developer=False),
                options=frozenset({"service_tier", "user"}),
                standard="on_demand",
                refused=(
                    "message.name", "n", "part.file", "part.audio", "sampling.logit_bias", "sampling.logprobs",
                    "prompt", "prompt_ids",
                ),
            ),
            max_tokens_field="max_completion_tokens",
        ),
        "together": Preset(
            "https://api.together.xyz/v1",
            "${TOGETHER_API_KEY}",
            Peculiarities(
                manners=Manners(developer=False),
                sampling=frozenset({"top_k", "min_p", "repetition_penalty"}),
                options=frozenset(),
                refused=("part.file", "part.audio", "sampling.logprobs", "prompt_ids"),
            ),
        ),
        "ollama": Preset(
            "http://127.0.0.1:11434/v1",
            "",
            Peculiarities(
                manners=Manners(developer=False),
                options=frozenset(),
                refused=(
                    "message.name", "n", "part.image.url", "part.file", "part.audio", "sampling.logit_bias",
                    "sampling.logprobs", "prompt_ids", "tool_choice", "parallel_tool_calls",
                ),
            ),
        ),
        "vllm": Preset(
            "http://127.0.0.1:8000/v1",
            "",
            Peculiarities(manners=Manners(developer=False), options=frozenset(), refused=("part.file",)),
            extensions=True,
        ),
    }
)  # fmt: skip


def official(settings: ModelSettings) -> bool:
    """Whether it is OpenAI's own service, at OpenAI or Azure."""
    host = urlsplit(settings.base_url).hostname or ""
    return settings.engine == "azure" or host.endswith(_OFFICIAL)


def peculiarities_of(settings: ModelSettings) -> Peculiarities:
    """What the server of these settings is like."""
    found = _known.get(id(settings))
    if found is None or found[0] is not settings:  # by identity: to hash settings costs more than all the rest here
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        found = _known[id(settings)] = settings, _peculiarities(settings)
    return found[1]


_MOST_KNOWN = 1024
_known: dict[int, tuple[ModelSettings, Peculiarities]] = {}


def _peculiarities(settings: ModelSettings) -> Peculiarities:
    preset = PRESETS.get(settings.engine)
    made = Peculiarities() if preset is None else preset.peculiar
    manners = made.manners
    if preset is None:
        manners = dataclasses.replace(manners, signatures=not official(settings))
    marks = official(settings) if settings.cache_marks is None else settings.cache_marks
    manners = dataclasses.replace(manners, cache_marks=marks)
    if settings.extensions:
        manners = dataclasses.replace(manners, thoughts=True)
        made = dataclasses.replace(made, sampling=frozenset(EXTENSIONS), structured=True, prefill=True)
    return dataclasses.replace(made, manners=manners)
