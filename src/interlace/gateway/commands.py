"""The verbs of the command line that belong to the gateway, as plain functions that return an exit code."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interlace.config import VLLM, Faults, ModelSettings, Settings, check_config, find_config, load_settings
from interlace.errors import CheckpointError, ConfigError, InvalidRequest

if TYPE_CHECKING:
    from interlace.gateway.reloading import Source
    from interlace.models.progress import Progress


def serve_command(
    *,
    config: Path | None = None,
    host: str | None = None,
    port: int | None = None,
    home: Path | None = None,
    log_level: str | None = None,
    workers: int | None = None,
    precision: str | None = None,
    env: Mapping[str, str] | None = None,
) -> int:
    """`interlace serve`: pull what is missing, listen, answer until SIGTERM. Exit codes: 0 drained, 1 failed, 2 wrong
    configuration."""
    env = os.environ if env is None else env
    overrides = {"host": host, "port": port, "home": home, "log.level": log_level, "workers": workers}
    overrides["precision"] = precision
    found = find_config(config, env)  # a reload reads the same file, or says that it is gone
    _raise_file_limit()
    try:
        settings, source = _source(found, env, overrides)
        from interlace.gateway.serve import serve

        if settings.workers == 1 and not settings.ledger.url.startswith("postgresql"):
            return serve(settings, env, source=source)
        from interlace.gateway.processes import serve_many

        options = {"config": None if found is None else str(found.resolve()), "overrides": _plain(overrides)}
        return serve_many(settings, options, env)
    except ConfigError as error:
        print(error.message, file=sys.stderr)
        return 2
    except CheckpointError as error:
        print(f"interlace: {error.message}", file=sys.stderr)
    except OSError as error:  # of a pull: a full disk, a folder that is not ours
        print(f"interlace: {error.filename or home or 'the home folder'}: {error.strerror or error}.", file=sys.stderr)
    return 1


def coordinate_command(said: str, env: Mapping[str, str]) -> int:
    """The coordinator of `interlace serve --workers N`, which says in `said` what its own options were."""
    options = json.loads(said)
    overrides = {name: Path(value) if name == "home" else value for name, value in options["overrides"].items()}
    try:
        settings, source = _source(None if options["config"] is None else Path(options["config"]), env, overrides)
        from interlace.gateway.processes.coordinating import coordinate

        return coordinate(settings, source, tuple(options["address"]), options["counters"], env)
    except ConfigError as error:
        print(error.message, file=sys.stderr)
        return 2


def _source(found: Path | None, env: Mapping[str, str], overrides: Mapping[str, Any]) -> tuple[Settings, Source]:
    """Settings that can be served by, their checkpoints on the disk, and where another load comes from."""
    from interlace import models
    from interlace.gateway.adapter_operations import with_added
    from interlace.gateway.added_models import with_added_models
    from interlace.gateway.logs import set_up_logs

    def read(faults: Faults | None = None, *, begins: bool = False) -> Settings:
        settings = load_settings(found, env, overrides, faults=faults)
        if begins:
            set_up_logs(settings.log)  # what is passed over is told there
        return with_added(with_added_models(settings, overrides.get("precision")))

    first = settings = read(begins=True)
    models.sweep_copies(settings.home)
    # Nobody waits for a download to hear this.
    for where, problem, mend in [
        *certificate_faults(settings),
        *redis_faults(settings, env),
        *key_faults(settings, env),
    ]:
        raise ConfigError(f"{where}: {problem.removesuffix('.')}. {mend}".rstrip())
    settings = _pull_missing(settings)
    from interlace.gateway.reloading import Source  # the HTTP server is heavy; other verbs don't need it

    return settings, Source(first, read, _fetched)


def _plain(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON has them; relative paths mean the folder we were started in."""
    given = {name: value for name, value in overrides.items() if value is not None}
    return {name: str(value.resolve()) if isinstance(value, Path) else value for name, value in given.items()}


def _raise_file_limit() -> None:
    """As many open files as the system lets us have: the usual 1024 is for programs that look at each with select()."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def reload_command(
    *,
    as_json: bool = False,
    url: str | None = None,
    key: str | None = None,
    config: Path | None = None,
    home: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> int:
    """`interlace reload`: the running server reads its configuration again. Exit codes: 0 done, 1 no server, or not
    allowed, 2 the configuration is wrong and nothing was changed."""
    from interlace.gateway.asking import Where, ask_to_reload

    try:
        done = ask_to_reload(Where(os.environ if env is None else env, url=url, key=key, config=config, home=home))
    except (ConfigError, InvalidRequest) as error:
        print(error.message, file=sys.stderr)
        return 2
    if as_json:
        print(json.dumps(done, indent=2))
    else:
        for what, names in done.items():
            if names:
                print(f"{what:8}  {', '.join(names)}")
    return 0


def config_check_command(path: Path | None = None, *, env: Mapping[str, str] | None = None) -> int:
    """`interlace config check`: one line per problem on standard output; exit code 1 when there is any."""
    env = os.environ if env is None else env
    found = find_config(path, env)
    problems = check_config(path, env, partial(faults_elsewhere, env=env))
    for problem in problems:
        print(problem)
    if not problems:
        print(f"{found} is good" if found else "No interlace.yaml here; the defaults are good")
    return 1 if problems else 0


def models_command(
    *,
    as_json: bool = False,
    url: str | None = None,
    config: Path | None = None,
    home: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> int:
    """`interlace models`: what the running server says it serves, else what the configuration names.

    Raises `ChatError` when the server that `url` or `INTERLACE_URL` names does not answer.
    """
    env = os.environ if env is None else env
    try:
        settings = load_settings(config, env, {"home": home}, need_keys=False)
    except ConfigError as error:
        print(error.message, file=sys.stderr)
        return 2
    rows = _served(settings, url or env.get("INTERLACE_URL"), env)
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        _print_table(rows)
    return 0


def _pull_missing(settings: Settings) -> Settings:
    """Bring checkpoints onto the disk that are named but not there yet; a source (`hf:…`) becomes its name there.

    A model that cannot be had is told of and left to its engine, which will say so too: it must not keep the others
    from being served. When there are no others, `CheckpointError`.
    """
    present: list[ModelSettings] = []
    reasons: list[str] = []
    for model in settings.models:
        try:
            present.append(_present(model, settings.home))
        except CheckpointError as error:
            present.append(model)
            reasons.append(f"{model.name}: {error.message}")
    if len(reasons) == len(settings.models):
        raise CheckpointError("\n".join(reasons))
    for reason in reasons:
        print(f"interlace: {reason}", file=sys.stderr)
    return dataclasses.replace(settings, models=tuple(present))


def checkpoint_faults(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """Of each checkpoint that `serve` could neither find nor pull: its setting, the problem, the mend."""
    from interlace import models

    mend = "Name one of the store or the catalogue, hf:ORG/NAME, or a path that starts with / ./ or ~"
    for number, model in enumerate(settings.models):
        if model.engine != "local":
            continue
        try:
            try:
                models.resolve(model.checkpoint, settings.home)
            except CheckpointError:
                if _is_path(model.checkpoint):
                    raise
                models.check_source(model.checkpoint)
        except CheckpointError as error:
            yield f"models[{number}].checkpoint", error.message.removesuffix("."), mend


def faults_elsewhere(settings: Settings, env: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """What is wrong with settings that are sound in form, because of what they name."""
    yield from certificate_faults(settings)
    yield from checkpoint_faults(settings)
    yield from redis_faults(settings, env)
    yield from vllm_faults(settings)
    yield from key_faults(settings, env)


def certificate_faults(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """Of a certificate and key that `serve` could not use."""
    if settings.tls.certificate is None:
        return
    from interlace.gateway.certificates import read_identity

    try:
        read_identity(settings.tls)
    except ConfigError as error:
        where, _, rest = error.message.partition(": ")
        problem, _, mend = rest.removesuffix(".").partition(". ")
        yield where, problem, mend or "Name one that can be read"


def redis_faults(settings: Settings, env: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Of an address that cannot be one, or a package that is not there; whether it answers, only time can tell."""
    if not settings.redis.url:
        return
    from interlace.redis_link import address_of

    try:
        address_of(settings.redis.url, env)
    except ConfigError as error:
        problem, _, mend = error.message.partition(". ")
        yield "redis.url", problem, mend


def vllm_faults(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """Of each vLLM that `serve` could not start here, or that is given what only such a one has."""
    from interlace.engines.vllm import check_vllm

    for number, model in enumerate(settings.models):
        if model.engine == VLLM:
            try:
                check_vllm(model)
            except ConfigError as error:
                problem, _, mend = error.message.partition(". ")
                yield f"models[{number}].executable", problem, mend.removesuffix(".")


def key_faults(settings: Settings, env: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Of each model of a provider that `serve` could not ask, because a key or a package is not there."""
    from interlace.engines.remote import RemoteEngine

    for number, model in enumerate(settings.models):
        if model.runs_here:
            continue
        try:
            RemoteEngine(model, env)
        except ConfigError as error:
            problem, _, mend = error.message.partition(". ")
            yield f"models[{number}].api_key", problem, mend


def _is_path(checkpoint: str) -> bool:
    return checkpoint.startswith(("/", ".", "~"))


def _present(model: ModelSettings, home: Path) -> ModelSettings:
    from interlace.models.bars import progress_for_people

    with progress_for_people() as progress:
        return _fetched(model, home, progress)


def _fetched(model: ModelSettings, home: Path, progress: Progress | None = None) -> ModelSettings:
    """The model with its checkpoint on the disk; raises `CheckpointError` and `OSError`."""
    from interlace import models

    if model.engine != "local":
        return model
    try:
        models.resolve(model.checkpoint, home)
        return model
    except CheckpointError:
        if _is_path(model.checkpoint):
            raise  # a path that is not there, or holds nothing we can serve, cannot be pulled
    pulled = models.pull(model.checkpoint, home, progress=progress)
    # By name: the manifest knows more of it than its files do (source, licence, suggested sampling).
    return dataclasses.replace(model, checkpoint=pulled.name)


def _served(settings: Settings, url: str | None, env: Mapping[str, str]) -> list[dict[str, Any]]:
    """The rows of the server at `url`; with none given, of the configured one, else what it would serve."""
    from interlace.gateway.chat import ChatError, NoServer, Server, server_url

    server = Server.reached_as(url or server_url(settings), None, settings, env)
    try:
        return server.models()
    except ChatError as error:
        if url:
            raise
        if not isinstance(error, NoServer):  # something listens there, but not as ours does
            print(f"interlace: {error.message}", file=sys.stderr)
    finally:
        server.close()
    return [_not_running(model) for model in settings.models]


def _not_running(model: ModelSettings) -> dict[str, Any]:
    row: dict[str, Any] = {"id": model.name, "state": "not running", "engine": model.engine}
    if model.engine == "local":
        return {**row, "checkpoint": model.checkpoint}
    provider = f"{model.model} at {model.base_url or model.engine}"
    return {**row, "context_length": model.context_length or None, "provider": provider}


def _print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    from interlace.models import print_table

    columns = ("id", "state", "engine", "kind", "context_length", "precision", "checkpoint", "provider")
    plain = (None, "", "local")  # where every model runs here, nobody needs to be told
    shown = [column for column in columns if any(row.get(column) not in plain for row in rows)]
    cells = [[str(row.get(column) or "") for column in shown] for row in rows]
    print_table([column.replace("_", " ").upper() for column in shown], cells, right=("CONTEXT LENGTH",))
