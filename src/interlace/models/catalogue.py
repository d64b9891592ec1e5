"""The well-known checkpoints of `catalogue.yaml`, which is part of the package."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import msgspec

from interlace.models.checkpoint import SuggestedSampling


class CatalogueSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One place to pull from. `files` are digests that must hold; `bytes` is about the size of the download."""

    source: str
    bytes: int
    files: dict[str, str]


class CatalogueEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A well-known checkpoint; its sources are tried in order."""

    summary: str
    architecture: str
    licence: str
    sources: tuple[CatalogueSource, ...]
    sampling: SuggestedSampling = SuggestedSampling()  # as the model card suggests


def known_models() -> tuple[str, ...]:
    """The names in the catalogue."""
    return tuple(catalogue())


@cache
def catalogue() -> dict[str, CatalogueEntry]:
    """Name → entry, in the order of the file."""
    import yaml

    text = files("interlace.models").joinpath("catalogue.yaml").read_text(encoding="utf-8")
    return msgspec.convert(yaml.safe_load(text), dict[str, CatalogueEntry])
