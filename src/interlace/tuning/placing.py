"""A checkpoint that was made here: into the store, and into service by the name of its run. And what would keep it, or
an adapter, from being served, told before it is made."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interlace.config import ModelSettings, Settings, read_added_models
from interlace.errors import CheckpointError, ConfigError, Conflict, InterlaceError, InvalidRequest, NotFound
from interlace.gateway.adapter_placing import check_adapter
from interlace.gateway.asking import Where, ask_server
from interlace.gateway.chat import ChatError, NoServer, Server, server_url
from interlace.gateway.model_placing import check_model, configured, place_model
from interlace.gateway.owners import find_owner
from interlace.models import Checkpoint, expected_shapes, find_checkpoint, is_name, pull, read_architecture, resolve
from interlace.tuning.folder import RunFolder, TuningError, sha256_of
from interlace.tuning.settings import DEFAULT_OWNER, EVERYBODY, TuneSettings
from interlace.tuning.sizes import ALL_LINEAR, lora, size_of

_MARK = 8  # digits of a digest that tell one result from an earlier one by its name


@dataclass(frozen=True, slots=True)
class InService:
    """What became of a checkpoint. `owner`: "" where it is everybody's. `now`: a running server answers by it already.
    `lined`: a line of the configuration serves it, once that is read again. `earlier`: the checkpoint before it."""

    name: str
    checkpoint: str
    owner: str
    now: bool
    lined: bool
    priced_as: str | None
    earlier: str = ""

    def report(self) -> dict[str, Any]:
        """For programs."""
        return {
            "served_as": self.name,
            "served_now": self.now,
            "checkpoint": self.checkpoint,
            "owner": self.owner or None,
            "priced_as": self.priced_as,
        }

    def words(self, *, classifies: bool, settings: Settings, where: Where) -> list[str]:
        """For people."""
        if self.lined:
            whose = f"{self.owner}'s" if self.owner else "everybody's"
            return [
                f"The checkpoint {self.checkpoint} is in the store, and the model {self.name} of the configuration has "
                f"it: {whose}, as the configuration says. Have it served: interlace reload"
                + (". Then ask /v1/classify." if classifies else "")
            ]
        said = [
            f"Served now as {self.name}, from the checkpoint {self.checkpoint}."
            if self.now
            else f"No server runs; the next `interlace serve` has it as {self.name}."
        ]
        if self.priced_as is None:
            amounts = "--prompt 0 --embedding 0.02" if classifies else "--prompt 0.10 --completion 0.20"
            said.append(
                f"It has no price yet, and until it has, requests are refused. Say what it costs, or zeros for what is "
                f"free: interlace prices create {self.name} {amounts}"
            )
        if classifies:
            url = where.url or where.env.get("INTERLACE_URL") or server_url(settings)
            said.append(
                f'Try it: curl {url.rstrip("/")}/v1/classify -H "Authorization: Bearer '
                f'$(cat {settings.home / "key"})" -H "Content-Type: application/json" '
                f'-d \'{{"model": "{self.name}", "input": "..."}}\''
            )
        else:
            said.append(f"Try it: interlace chat {self.name}")
        if self.earlier:
            said.append(f"The one before it is still in the store: interlace checkpoints rm {self.earlier}")
        return said


def check_place(settings: TuneSettings, served: Settings, model: str, where: Where, *, done: bool, fresh: bool) -> None:
    """Before anything is trained: raise where the result could not be served by its name to its owner; `ConfigError`
    where that could never be, `TuningError` for what is there already. `model`: the configuration's that has the base;
    "" where none has it, and an adapter will not be served."""
    owner, replace = owner_of(settings), done or fresh
    try:
        if settings.makes_checkpoint:
            line = configured(settings.name, served)
            if line is not None and line.checkpoint == settings.name:
                _check_line(settings, line, served.home, where, done=done)
            else:
                check_model(settings.name, owner, served, where, replace=replace)
        elif model:
            check_adapter(model, settings.name, owner, where, replace=replace)
        elif settings.owner != DEFAULT_OWNER:
            find_owner(owner, where)
    except Conflict as error:
        raise TuningError(_placed(error)) from error
    except NotFound as error:
        if error.code != "organisation_not_found":
            raise TuningError(_placed(error)) from error
        raise _no_owner(error) from error
    except InvalidRequest as error:
        raise ConfigError(_placed(error)) from error


def model_over(checkpoint: Checkpoint, settings: TuneSettings, served: Settings, where: Where) -> str | None:
    """The model that has the base, and that the result's owner may use: the one of the base's name first; None where no
    model has it. Raises `ConfigError` where only other organisations' have: what is made of their weights is neither
    another's nor everybody's."""
    local = [model for model in served.models if model.engine == "local"]
    over = [model for model in local if _has(model, checkpoint, served.home)]
    over.sort(key=lambda model: model.name != checkpoint.name)
    if not any(model.owner for model in over):
        return over[0].name if over else None
    try:
        owner = find_owner(owner_of(settings), where)
    except NotFound as error:
        raise _no_owner(error) from error
    for model in over:
        if not model.owner or owner.has(model.owner):
            return model.name
    whose = " and ".join(sorted({f"{model.name} belongs to {model.owner}" for model in over}))
    raise ConfigError(
        f"owner: {whose}, and so do the weights of {checkpoint.name} and what is made of them. Give that owner, or "
        "another base."
    )


def _has(model: ModelSettings, checkpoint: Checkpoint, home: Path) -> bool:
    try:
        return resolve(model.checkpoint, home).path.resolve() == checkpoint.path.resolve()  # of `..`, or a link
    except CheckpointError:
        return False  # not here, so it is not the base


def _no_owner(error: NotFound) -> ConfigError:
    mend = "Make it first: interlace orgs create NAME. `interlace orgs list` shows which there are."
    return ConfigError(f"owner: {error.message} {mend}")


def check_where(where: Where, served: Settings) -> None:
    """Before anything is trained: raise `ConfigError` where nothing can be kept in the home folder, or no server is at
    the address that the command line gives."""
    home, option = served.home, "--home: " if where.home else ""
    there = next(each for each in (home, *home.parents) if each.exists())
    if not there.is_dir():
        raise ConfigError(f"{option}{there} is no folder. Name another home folder with --home.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{option}{there} may not be written. Mind its rights, or name another with --home.")
    if not where.url:
        return
    try:
        Server(where.url, None).close()
    except ChatError as error:
        raise ConfigError(f"--url: {error.message}") from error
    try:
        ask_server("GET", "/models", None, where.url, served, where)
    except NoServer as error:
        mend = "Start it, or leave --url out: the next server that starts will have the result."
        raise ConfigError(f"--url: No server answers at {where.url}. {mend}") from error


def check_size(settings: TuneSettings, base: Path, model: str, served: Settings) -> None:
    """Before anything is trained: raise `ConfigError` where the engine of the model, which has the base, would have no
    room for the adapter."""
    most = next(one.adapter_bytes for one in served.models if one.name == model)
    targets = [each.strip() for each in settings.targets.split(",")]
    architecture = read_architecture(base)
    try:
        learnt = lora(size_of(architecture), expected_shapes(architecture), settings.rank,
                      ALL_LINEAR if targets == [ALL_LINEAR] else targets)  # fmt: skip
    except ValueError:
        return  # names that are no layers' are told where the model is loaded, with those that there are
    needed = 4 * learnt.added
    if needed > most:
        raise ConfigError(
            f"rank: an adapter of rank {settings.rank} over {settings.targets} takes {needed:,} bytes of memory, over "
            f"the {most:,} of adapter_bytes that the model {model} has for all of them. Write a smaller rank or fewer "
            "targets, or raise adapter_bytes in the configuration."
        )


def _placed(error: InterlaceError) -> str:
    return f"{error.param}: {error.message}" if error.param in ("name", "owner") else error.message


def _check_line(settings: TuneSettings, line: ModelSettings, home: Path, where: Where, *, done: bool) -> None:
    """A line of the configuration waits for the checkpoint, and says whose it is."""
    if not is_name(settings.name):
        raise ConfigError(
            f"name: {settings.name} cannot name a checkpoint, which the configuration's model of that name waits for. "
            "Choose another, of a-z, 0-9, dots, dashes and underscores, and have the configuration say it, too."
        )
    if not done and find_checkpoint(settings.name, home):
        raise TuningError(
            f"There is a checkpoint {settings.name} already, which the configuration serves. Choose another --name, or "
            f"remove it: interlace checkpoints rm {settings.name}"
        )
    if settings.owner != DEFAULT_OWNER and not find_owner(owner_of(settings), where).has(line.owner):
        raise TuningError(
            f"owner: The configuration's model {settings.name} is {line.owner or 'everybody'}'s, not "
            f"{settings.owner}'s. Say there whose it is, or leave the owner out."
        )


def owner_of(settings: TuneSettings) -> str:
    """The organisation that the result belongs to, by name or id; "": everybody."""
    return "" if settings.owner == EVERYBODY else settings.owner


def place_result(settings: TuneSettings, folder: RunFolder, like: str, served: Settings, where: Where, *,
                 replace: bool) -> InService:  # fmt: skip
    """Store the run's result and serve it by the run's name, at the price of the model `like` ("": none). Raises
    `TuningError`; the same command tries again."""
    name, home = settings.name, served.home
    line = configured(name, served)
    if line is not None:
        pull(str(folder.result), home, name=name)
        return InService(name, name, line.owner, now=False, lined=True, priced_as=None)
    stored = _stored(folder.result, name.lower().rstrip("."), home)
    owner = owner_of(settings)
    before = next((one.checkpoint for one in read_added_models(home) if one.name == name), stored)
    try:
        view = place_model(name, stored, owner, like, where, replace=replace)
    except InterlaceError as error:
        raise TuningError(
            f"The checkpoint is made and is in the store as {stored}, but it cannot be served: {error.message} The "
            "same command tries that again, and trains nothing."
        ) from error
    priced_as = (like or None) if view is None else view.priced_as
    return InService(
        name, stored, owner, now=view is not None, lined=False, priced_as=priced_as,
        earlier="" if before == stored else before,
    )  # fmt: skip


def _stored(result: Path, name: str, home: Path) -> str:
    """The name in the store of the checkpoint that lies in `result`: an earlier one is never written over, for requests
    may read it, so what comes after it has a mark of its content behind its name."""
    for each in (name, f"{name}-{_digest(result)[:_MARK]}"):
        there = find_checkpoint(each, home)
        if there is None:
            return pull(str(result), home, name=each).name
        if _is(there, result):
            return each
    raise TuningError(f"The store has another checkpoint {each}. Remove it: interlace checkpoints rm {each}")


def _is(checkpoint: Checkpoint, result: Path) -> bool:
    files = checkpoint.manifest.files
    return bool(files) and all(
        (result / name).is_file() and sha256_of(result / name) == digest for name, digest in files.items()
    )


def _digest(result: Path) -> str:
    said = "".join(f"{file.name}\0{sha256_of(file)}\n" for file in sorted(result.iterdir()) if file.is_file())
    return hashlib.sha256(said.encode()).hexdigest()
