"""The dimensions of a decoder or encoder from a Hugging Face folder's JSON files."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any, Literal

from interlace.errors import CheckpointError
from interlace.models.architecture import Architecture, EncoderArchitecture
from interlace.models.decoder_hf import ACTIVATIONS, decoder_architecture
from interlace.models.families import FAMILIES
from interlace.models.fields import Fields
from interlace.models.layout import read_json, read_json_value

Pooling = Literal["cls", "mean", "max", "mean_sqrt_len"]
Scores = Literal["softmax", "sigmoid", "plain"]

_POOLINGS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
}
_POOLING_NAMES: dict[str, Pooling] = {
    "cls": "cls",
    "mean": "mean",
    "max": "max",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
}
ENCODERS = ("bert", "roberta", "xlm-roberta")
_LABELS_MAX = 1 << 16


def folder_architecture(folder: Path) -> Architecture:
    """Read `config.json` and, for an encoder, the files of sentence-transformers beside it."""
    fields = Fields(read_json(folder / "config.json"), "config.json")
    family = fields.word("model_type")
    fields.must_be_off("quantization_config")
    fields.must_be_off("auto_map")  # the model is defined by code in the repository, which never runs here
    if family in FAMILIES:
        return decoder_architecture(family, fields)
    if family in ENCODERS:
        return _encoder(family, fields, folder)
    raise CheckpointError(
        f"config.json: model_type is {family[:40]!r}; this engine runs {', '.join([*FAMILIES, *ENCODERS])}."
    )


def _encoder(family: str, fields: Fields, folder: Path) -> EncoderArchitecture:
    for name in ("is_decoder", "add_cross_attention"):
        fields.must_be_off(name)
    fields.must_be_off("position_embedding_type", "absolute")
    activation = fields.word("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise fields.wrong("hidden_act", activation, f"one of {', '.join(ACTIVATIONS)}")
    hidden, heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    if hidden % heads:
        raise CheckpointError(f"config.json: hidden_size {hidden} is not a multiple of {heads} heads.")
    positions = fields.count("max_position_embeddings", 512)
    # RoBERTa counts positions from the one after its padding token's id.
    first = 0 if family == "bert" else fields.index("pad_token_id", 1) + 1
    if first >= positions:
        raise fields.wrong("pad_token_id", first - 1, f"an id below the {positions} positions")
    labels, scores = _labels(fields)
    pooling, normalize = _sentence_modules(folder) if not labels else ("cls", False)
    return EncoderArchitecture(
        family=family,
        layers=fields.count("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        feed_forward=fields.count("intermediate_size"),
        vocabulary=fields.count("vocab_size"),
        positions=positions,
        token_types=fields.count("type_vocab_size", 2),
        norm_epsilon=fields.number("layer_norm_eps", 1e-12),
        activation=ACTIVATIONS[activation],
        max_tokens=min(positions - first, _sentence_limit(folder, positions - first)),
        pooling=pooling,
        normalize=normalize,
        first_position=first,
        labels=labels,
        scores=scores,
    )


def _labels(fields: Fields) -> tuple[tuple[str, ...], Scores]:
    """The labels of a model that classifies sequences, in order, and what its numbers become; none for an embedder."""
    built = fields.values.get("architectures")
    if not isinstance(built, list) or not any(str(name).endswith("ForSequenceClassification") for name in built):
        return (), "plain"
    named = fields.values.get("id2label")
    if named is None:
        named = {str(number): f"LABEL_{number}" for number in range(fields.count("num_labels", 2))}
    if not isinstance(named, dict) or not 0 < len(named) <= _LABELS_MAX:
        raise fields.wrong("id2label", named, "an object of labels by number")
    labels = tuple(label for number in range(len(named)) if isinstance(label := named.get(str(number)), str))
    if len(labels) != len(named):
        raise fields.wrong("id2label", named, "an object of labels by number, from 0 on")
    problem = fields.values.get("problem_type")
    if problem == "regression":
        return labels, "plain"
    return labels, "sigmoid" if len(labels) == 1 or problem == "multi_label_classification" else "softmax"


def _sentence_limit(folder: Path, positions: int) -> int:
    """`max_seq_length` of the sentence config; without one the tokenizer's limit, as sentence-transformers does."""
    sentence = folder / "sentence_bert_config.json"
    if sentence.is_file():
        fields = Fields(read_json(sentence), sentence.name)
        if fields.values.get("max_seq_length") is not None:
            return fields.count("max_seq_length")
    tokenizer = folder / "tokenizer_config.json"
    limit = read_json(tokenizer).get("model_max_length") if tokenizer.is_file() else None
    # "No limit" is written as a number around 1e30.
    return int(limit) if isinstance(limit, int | float) and 1 <= limit < positions else positions


def _sentence_modules(folder: Path) -> tuple[Pooling, bool]:
    """Pooling and normalisation as `modules.json` lists them; a bare encoder means its tokens, as the library does."""
    file = folder / "modules.json"
    if not file.is_file():
        return "mean", False
    modules = read_json_value(file)
    if not isinstance(modules, list):
        raise CheckpointError("modules.json is not a list of modules.")
    pooling: Pooling | None = None
    normalize = False
    for number, module in enumerate(modules):
        kind, path = _module(module)
        if kind == "Pooling" and pooling is None and not normalize:
            pooling = _pooling(folder / path / "config.json")
        elif kind == "Normalize" and pooling is not None:
            normalize = True  # it has no settings, and often no folder
        elif kind != "Transformer" or number != 0 or path != PurePosixPath("."):
            raise CheckpointError(f"modules.json: module {number} is {kind!r}, which this engine cannot run there.")
    if pooling is None:
        raise CheckpointError("modules.json has no Pooling module, so there is no single vector for a text.")
    return pooling, normalize


def _module(module: Any) -> tuple[str, PurePosixPath]:
    """The class name and folder of one module; the folder may not lead out of the checkpoint."""
    fields = Fields(module if isinstance(module, dict) else {}, "modules.json")
    path = PurePosixPath(fields.word("path", ""))
    if path.is_absolute() or ".." in path.parts or "\\" in str(path) or "\0" in str(path):
        raise CheckpointError(f"modules.json: the path {str(path)[:80]!r} leads out of the checkpoint.")
    return fields.word("type").rpartition(".")[2], path


def _pooling(file: Path) -> Pooling:
    config = read_json(file)
    where = f"{file.parent.name}/{file.name}"
    if config.get("pooling_mode") is not None:
        name = config["pooling_mode"]
        if not isinstance(name, str) or name not in _POOLING_NAMES:
            raise CheckpointError(f"{where}: pooling_mode is {str(name)[:80]!r}; known: {', '.join(_POOLING_NAMES)}.")
        return _POOLING_NAMES[name]
    chosen = [name for name, on in config.items() if name.startswith("pooling_mode_") and on]
    if len(chosen) != 1 or chosen[0] not in _POOLINGS:
        raise CheckpointError(f"{where}: the pooling {chosen} is not one of {', '.join(_POOLINGS)}.")
    return _POOLINGS[chosen[0]]
