"""`interlace doctor`: every check, one after the other, and what to do about what is not well."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from interlace.config import Settings, check_config, find_config, load_settings
from interlace.errors import ConfigError
from interlace.gateway.added_models import with_added_models
from interlace.gateway.chat import server_url
from interlace.gateway.doctor import machine, outside, redis_server, stores
from interlace.gateway.doctor.findings import Case, Check, Finding, fail, ok
from interlace.models import print_table

CONFIGURATION = "configuration"
CHECKS: Mapping[str, Check] = {
    "home": machine.home,
    "disk": machine.disk,
    "files": machine.files,
    "packages": machine.packages,
    "checkpoints": machine.checkpoints,
    "database": stores.database,
    "drift": stores.drift,
    "clock": stores.clock,
    "redis": redis_server.redis,
    "certificate": outside.certificate,
    "providers": outside.providers,
    "prices": stores.prices,
    "owners": stores.owners,
    "server": outside.server,
}


def doctor_command(
    *,
    only: Sequence[str] = (),
    running: bool = False,
    paid: bool = False,
    min_free_bytes: int = 1 << 30,
    price_days: int = 180,
    url: str | None = None,
    key: str | None = None,
    config: Path | None = None,
    home: Path | None = None,
    as_json: bool = False,
    env: Mapping[str, str] | None = None,
) -> int:
    """Examine. Exit codes: 0 nothing fails, 1 something does, 2 wrong use."""
    env = os.environ if env is None else env
    for name in only:
        if name not in (CONFIGURATION, *CHECKS):
            raise ConfigError(f"--only {name!r} is no check; there are: {CONFIGURATION}, {', '.join(CHECKS)}.")
    found = find_config(config, env)
    rows = [(CONFIGURATION, finding) for finding in _configuration(found, env)]
    try:
        settings = load_settings(found, env, {"home": home}, need_keys=False)
    except ConfigError:
        pass  # nothing else can be looked at, and the configuration says why
    else:
        settings, faults = _as_served(settings)
        rows += [(CONFIGURATION, fault) for fault in faults]
        address = url or env.get("INTERLACE_URL") or server_url(settings)
        case = Case(settings, found, env, address, key, min_free_bytes, price_days, running=running, paid=paid)
        wanted = [name for name in CHECKS if not only or name in only]
        rows += [(name, finding) for name in wanted for finding in _examined(name, case)]
        if only and CONFIGURATION not in only:
            rows = [(name, finding) for name, finding in rows if name != CONFIGURATION]
    failed = any(finding.status == "fail" for _, finding in rows)
    if as_json:
        checks = [{"check": name, **msgspec.to_builtins(finding)} for name, finding in rows]
        print(msgspec.json.format(msgspec.json.encode({"ok": not failed, "checks": checks}), indent=2).decode())
    else:
        _print(rows)
    return 1 if failed else 0


def _configuration(file: Path | None, env: Mapping[str, str]) -> Iterator[Finding]:
    problems = check_config(file, env)
    for problem in problems:
        place = f"{problem.file}:{problem.line}" if problem.line else problem.file
        yield fail(f"{place}: {problem.where}: {problem.problem}", problem.mend)
    if not problems:
        yield ok(f"{file} is good" if file else "no interlace.yaml: the defaults")


def _as_served(settings: Settings) -> tuple[Settings, list[Finding]]:
    """With the models that were added by command, which a server serves, too; and what is wrong with their list."""
    try:
        return with_added_models(settings), []
    except ConfigError as error:
        problem, _, mend = error.message.removesuffix(".").rpartition(". ")
        return settings, [fail(problem, mend)]


def _examined(name: str, case: Case) -> Iterator[Finding]:
    try:
        yield from CHECKS[name](case)
    except Exception as error:  # noqa: BLE001 - one check that cannot be made must not hide the others
        yield fail(
            f"it could not be looked at: {type(error).__name__}: {error}", "Read the error; it may be a bug of ours"
        )


def _print(rows: Sequence[tuple[str, Finding]]) -> None:
    print_table(
        ["CHECK", "RESULT", "WHAT WAS SEEN"], [[name, one.status, " ".join(one.what.split())] for name, one in rows]
    )
    mends = [(name, one) for name, one in rows if one.status != "ok"]
    if mends:
        print("\nWhat to do:")
    for name, one in mends:
        print(f"  {name}: {' '.join(one.what.split())}\n      {one.mend}")
    sys.stdout.flush()
