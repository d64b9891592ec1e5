"""A checkpoint from the Hugging Face Hub: its listing through huggingface_hub, its files with our own resume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from interlace.errors import CheckpointError
from interlace.models.describe import spdx
from interlace.models.download import Remote, fetch
from interlace.models.files import choose, safe_name
from interlace.models.progress import Progress
from interlace.models.refs import HubRef
from interlace.models.room import check_disk
from interlace.models.space import Origin, SourceUnavailable, Space

LISTING_TIMEOUT_SECONDS = 5.0


def pull_hub(ref: HubRef, space: Space, progress: Progress) -> Origin:
    """Bring a repository's weights, config and tokenizer into `space`, every file verified against the Hub's listing.

    Raises SourceUnavailable, in words, for a Hub out of reach and for missing or gated repositories.
    """
    info = _listing(ref)
    commit = str(info.sha)
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
    names = [safe_name(name) for name in _chosen(ref, list(siblings))]
    space.keep_only(names)
    check_disk(space.root, sum(siblings[name].size or 0 for name in names) - space.held_bytes())
    for name in names:
        fetch(_remote(ref, commit, siblings[name], space.digests.get(name)), space.files / name, space.parts, progress)
    return Origin(str(HubRef(ref.repo, commit, ref.file)), licence_of(info))


def _listing(ref: HubRef) -> Any:
    from huggingface_hub import HfApi

    try:
        return HfApi().model_info(ref.repo, revision=ref.revision, files_metadata=True, timeout=LISTING_TIMEOUT_SECONDS)
    except Exception as error:  # every client error of the library is translated below; what is unknown goes on up
        translated = in_words(error, f"hf:{ref.repo}", ref.revision)
        if translated is None:
            raise
        raise translated from error


def in_words(error: Exception, where: str, revision: str | None) -> SourceUnavailable | None:
    """The library's errors, most specific first. Its HTTP client differs by release, so that is known by name."""
    from huggingface_hub import errors

    table: Sequence[tuple[type[Exception], str]] = (
        (errors.HFValidationError, "is no name that a repository of the Hub can have"),
        (errors.GatedRepoError, "is gated: accept its terms on the Hub, then set HF_TOKEN to a token of your account"),
        (errors.RevisionNotFoundError, f"has no revision {revision}"),
        (errors.RepositoryNotFoundError, "does not exist, or is private: check the name, or set HF_TOKEN"),
        (errors.OfflineModeIsEnabled, "is not asked for: HF_HUB_OFFLINE is set"),
        (errors.HfHubHTTPError, "cannot be listed: the Hub answered with an error"),
    )
    for kind, words in table:
        if isinstance(error, kind):
            return SourceUnavailable(f"{where} {words}.")
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, OSError) or names & {"TransportError", "ConnectionError"}:
        return SourceUnavailable(f"The Hub cannot be reached ({error}).")
    return None


def _chosen(ref: HubRef, offered: list[str]) -> list[str]:
    if ref.file is None:
        return choose(offered, f"hf:{ref.repo}", lambda name: str(HubRef(ref.repo, ref.revision, name)))
    if ref.file not in offered:
        raise CheckpointError(f"hf:{ref.repo} has no file {ref.file}.")
    if not ref.file.endswith(".gguf"):
        raise CheckpointError(f"{ref.file} is not a GGUF file; only one of those can be taken alone.")
    return [ref.file]


def _remote(ref: HubRef, commit: str, sibling: Any, wanted_sha256: str | None) -> Remote:
    """Large files state a SHA-256, small ones git's id; a digest of the catalogue goes before both."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, not in its __all__

    stated = sibling.lfs.sha256 if sibling.lfs is not None else None
    return Remote(
        name=sibling.rfilename,
        url=hf_hub_url(ref.repo, sibling.rfilename, revision=commit),
        bytes=sibling.size,
        sha256=wanted_sha256 or stated,
        git_sha1=None if stated else sibling.blob_id,
        headers=build_hf_headers(library_name="interlace"),
    )


def licence_of(info: Any) -> str | None:
    """What the repository's tags say."""
    for tag in info.tags or []:
        if isinstance(tag, str) and tag.startswith("license:"):
            return spdx(tag.removeprefix("license:"))
    return None
