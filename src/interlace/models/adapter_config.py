"""`adapter_config.json` of a LoRA adapter in PEFT's format: which layers it changes, by what rank and scale.

Of `modules_to_save` only the output layer, `lm_head`, can be. What PEFT can do and we cannot is refused by the name
of its field; a field that is not known here is refused too, unless it is empty, because it may change what the
adapter computes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import regex

from interlace.errors import CheckpointError

MAX_CONFIG_BYTES = 1 << 20
# Of the weights' file: some hundred bytes a layer; parsing a larger one would hold up the engine's steps.
MAX_HEADER_BYTES = 1 << 20
MAX_RANK = 1024  # as in the compiled operation, lowrank.cpp
HEAD = "lm_head"
_MAX_PATTERN_CHARACTERS = 2000
_MAX_PATTERNS = 4096
_MATCH_SECONDS = 0.5  # of one pattern on one name: a hostile one would run for years

_FILE = "adapter_config.json"
_READ = {
    "peft_type", "r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "rank_pattern", "alpha_pattern", "use_rslora", "bias", "modules_to_save",
}  # fmt: skip
_HARMLESS = {  # of training, of merging, or of where the adapter came from; none changes what a trained one computes
    "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version",
    "lora_dropout", "fan_in_fan_out", "megatron_config", "megatron_core", "loftq_config",
    "eva_config", "corda_config", "lora_ga_config", "velora_config", "monteclora_config", "runtime_config",
    "qalora_group_size", "ensure_weight_tying", "direction",
}  # fmt: skip
_BEGINNINGS = ("gaussian", "eva", "orthogonal")  # of the adapter's own numbers; of others, PEFT changes the base, too
_MENDS = {
    "use_dora": "DoRA scales whole rows of the base's weights, which layers shared by many adapters cannot. "
    "Train with use_dora=False, or merge the adapter into a checkpoint of its own",
    "lora_bias": "train with lora_bias=False",
    "trainable_token_indices": "it replaces embeddings of the base. Train without it",
    "target_parameters": "name layers in target_modules instead",
    "layer_replication": "it builds another base. Merge the adapter into a checkpoint of its own",
    "alora_invocation_tokens": "activated LoRA is not known here. Train a plain one",
}


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """What the config says of layers, checked."""

    rank: int
    alpha: float
    targets: str | frozenset[str]
    excluded: str | frozenset[str] = frozenset()
    layers: frozenset[int] | None = None
    layer_patterns: tuple[str, ...] = ()
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    root_scale: bool = False
    own_head: bool = False  # it has an output layer of its own, whole

    def targets_of(self, linears: Collection[str]) -> list[str]:
        """Those of the base's linear layers (dotted names without `.weight`) that the adapter changes, as PEFT finds
        them. The output layer is none of them."""
        return [name for name in linears if self._is_target(name)]

    def rank_of(self, layer: str) -> int:
        """The rank in that layer."""
        return self.ranks.get(_pattern_for(layer, self.ranks, "rank_pattern"), self.rank)

    def scale_of(self, layer: str) -> float:
        """What `B A x` is multiplied by in that layer: alpha / rank, or alpha / sqrt(rank) with rsLoRA."""
        rank = self.rank_of(layer)
        alpha = self.alphas.get(_pattern_for(layer, self.alphas, "alpha_pattern"), self.alpha)
        return alpha / (math.sqrt(rank) if self.root_scale else rank)

    def _is_target(self, layer: str) -> bool:
        if self.excluded and _named(layer, self.excluded, "exclude_modules"):
            return False
        if isinstance(self.targets, str):
            return self.targets.lower() == "all-linear" or _named(layer, self.targets, "target_modules")
        return _named(layer, self.targets, "target_modules") and self._in_layers(layer)

    def _in_layers(self, layer: str) -> bool:
        if not self.layers:
            return self.layers is None
        for pattern in self.layer_patterns or (r"[^.]*",):
            if found := _match(rf"(?:^|.*?\.){pattern}\.(?P<number>\d+)\.", layer, "layers_pattern"):
                return int(found["number"]) in self.layers
        return False


def parse_lora_config(text: bytes) -> LoraConfig:
    """Read the config; raises `CheckpointError` naming the field, the problem and the mend."""
    if len(text) > MAX_CONFIG_BYTES:
        raise CheckpointError(f"{_FILE} has more than {MAX_CONFIG_BYTES:,} bytes. No config of an adapter is so large.")
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{_FILE} is not valid JSON. Save the adapter again.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{_FILE} is not a JSON object. Save the adapter again.")
    _refuse_what_is_not_known(config)
    return LoraConfig(
        rank=_rank(config.get("r", 8), "r"),
        alpha=_number(config.get("lora_alpha", 8), "lora_alpha"),
        targets=_names(config.get("target_modules"), "target_modules"),
        excluded=_names(config.get("exclude_modules") or [], "exclude_modules"),
        layers=_layers(config.get("layers_to_transform")),
        layer_patterns=tuple(_patterns(config.get("layers_pattern"), "layers_pattern")),
        ranks={key: _rank(value, "rank_pattern") for key, value in _table(config, "rank_pattern")},
        alphas={key: _number(value, "alpha_pattern") for key, value in _table(config, "alpha_pattern")},
        root_scale=config.get("use_rslora") is True,
        own_head=_has_own_head(config.get("modules_to_save")),
    )


def _refuse_what_is_not_known(config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise _wrong("peft_type", f"is {_shown(config.get('peft_type'))}", "Only LORA adapters can be served")
    if config.get("bias", "none") != "none":
        raise _wrong("bias", f"is {_shown(config['bias'])}", 'It changes the base\'s biases: train with bias="none"')
    beginning = config.get("init_lora_weights", True)
    if beginning not in (True, False, None) and str(beginning).lower() not in _BEGINNINGS:
        mend = (
            "It is an adapter of weights that PEFT changes whenever it loads it, not of the base's. Save it with "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...), which makes a plain one of it"
        )
        raise _wrong("init_lora_weights", f"is {_shown(beginning)}", mend)
    for name, value in config.items():
        if name == "init_lora_weights" or name in _READ or name in _HARMLESS or not value:
            continue
        if name in _MENDS:
            raise _wrong(name, f"is {_shown(value)}", _MENDS[name][0].upper() + _MENDS[name][1:])
        mend = "It may change what the adapter computes: save the adapter without it"
        raise _wrong(_shown(name), "is a field that is not known here", mend)


def _table(config: Mapping[str, Any], name: str) -> Iterator[tuple[str, Any]]:
    table = config.get(name) or {}
    if not isinstance(table, dict) or len(table) > _MAX_PATTERNS:
        raise _wrong(name, "is not an object of layer names", "Save the adapter again")
    for key, value in table.items():
        yield _pattern(key, name), value


def _rank(value: Any, name: str) -> int:
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        raise _wrong(name, f"has the rank {_shown(value)}", f"Give a whole number from 1 to {MAX_RANK}")
    return value


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e9:  # NaN is refused, too
        raise _wrong(name, f"has the value {_shown(value)}", "Give a number")
    return float(value)


def _layers(value: Any) -> frozenset[int] | None:
    if value is None or value == []:
        return None
    numbers = value if isinstance(value, list) else [value]
    if len(numbers) > _MAX_PATTERNS or not all(type(number) is int for number in numbers):
        raise _wrong("layers_to_transform", f"is {_shown(value)}", "Give layer numbers")
    return frozenset(numbers)


def _has_own_head(value: Any) -> bool:
    if not value:
        return False
    if value != [HEAD]:
        mend = f"Of whole layers, only {HEAD} can be an adapter's own; all others are the base's, for everybody. Train "
        raise _wrong(
            "modules_to_save", f"is {_shown(value)}", f"{mend}without them, or merge the adapter into the base"
        )
    return True


def _names(value: Any, name: str) -> str | frozenset[str]:
    if isinstance(value, str):
        return _pattern(value, name)
    names = _patterns(value, name)
    if not names and name == "target_modules":
        raise _wrong(name, "names no layer", 'Give a list such as ["q_proj", "v_proj"], a pattern, or "all-linear"')
    return frozenset(names)


def _patterns(value: Any, name: str) -> list[str]:
    values = [] if value is None else value if isinstance(value, list) else [value]
    if len(values) > _MAX_PATTERNS:
        raise _wrong(name, f"has more than {_MAX_PATTERNS} entries", "Save the adapter again")
    return [_pattern(one, name) for one in values]


def _pattern(value: Any, name: str) -> str:
    if not isinstance(value, str) or len(value) > _MAX_PATTERN_CHARACTERS:
        raise _wrong(name, f"has the entry {_shown(value)}", "Give names of layers, or a pattern of them")
    return value


# --- matching, as PEFT does it ------------------------------------------------------------------------------------


def _named(layer: str, names: str | frozenset[str], where: str) -> bool:
    """Whether a pattern fits the whole name, or a list has the name or an end of it that begins after a dot."""
    if isinstance(names, str):
        return _match(names, layer, where, whole=True) is not None
    parts = layer.split(".")
    return any(".".join(parts[start:]) in names for start in range(len(parts)))


def _pattern_for(layer: str, patterns: Collection[str], where: str) -> str:
    """The first of the patterns that fits the name, or an end of it that begins after a dot; else the name itself."""
    return next((one for one in patterns if _match(rf"(.*\.)?({one})$", layer, where)), layer)


def _match(pattern: str, text: str, where: str, *, whole: bool = False) -> regex.Match[str] | None:
    """A match at the beginning, within bounded time; the pattern is the adapter's, so it may be anything."""
    try:
        match = regex.fullmatch if whole else regex.match
        return match(pattern, text, timeout=_MATCH_SECONDS, concurrent=True)
    except TimeoutError as error:
        raise _wrong(where, "has a pattern that takes too long to match", "Give a list of names") from error
    except (regex.error, RecursionError, MemoryError, OverflowError) as error:
        raise _wrong(where, f"has the pattern {_shown(pattern)}, which is none", "Give a list of names") from error


def _wrong(name: str, problem: str, mend: str) -> CheckpointError:
    return CheckpointError(f"{_FILE}: {name} {problem}. {mend}.")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
