"""`interlace ledger ...`: what the command line calls. All but `restore` read the database itself, beside a running
server or without one, take no lock and write nothing into it.

Each returns an exit code: 0 fine, 1 the record is wrong, 2 the command was used wrongly.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import TextIO

import msgspec
from sqlalchemy import func, select

from interlace.config import Settings
from interlace.errors import ConfigError
from interlace.ledger.audit import audit
from interlace.ledger.backup import back_up, restore
from interlace.ledger.export import Span, as_beancount, as_csv
from interlace.ledger.reading import reading
from interlace.ledger.schema import usage_events

FORMATS = {"beancount": as_beancount, "csv": as_csv}


def check_command(settings: Settings, *, as_json: bool = False) -> int:
    """Audit the record; each finding is a line as soon as it is found. Exit code 1 when anything is wrong."""
    wrong = notices = 0
    findings, events = [], 0
    with reading(settings) as connection:
        for finding in audit(connection, settings.ledger.time_zone):
            wrong += finding.severity == "wrong"
            notices += finding.severity == "notice"
            if as_json:
                findings.append(finding)
            else:
                print(f"{finding.severity}: {finding}")
        with contextlib.suppress(Exception):  # a record without the table: it has been told of
            events = connection.scalar(select(func.count()).select_from(usage_events)) or 0
    if as_json:
        report = {"ok": not wrong, "wrong": wrong, "notices": notices, "events": events, "findings": findings}
        print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    elif wrong:
        print(f"The record is wrong in {wrong} places.", file=sys.stderr)
    else:
        print(f"The record is right: {events:,} events, every sum agrees.")
    return 1 if wrong else 0


def backup_command(settings: Settings, target: Path) -> int:
    """Copy the ledger beside a running server."""
    copied = back_up(settings, target)
    print(f"{target}: {copied.events:,} events, {copied.bytes:,} bytes")
    if not os.environ.get("INTERLACE_SECRET"):
        print(f"Keep {settings.home / 'secret'} too, elsewhere: without it, no key is recognised.", file=sys.stderr)
    return 0


def restore_command(settings: Settings, source: Path) -> int:
    """Put a backup in the ledger's place, and audit it. Exit code 1 when it is restored, and wrong."""
    done = restore(settings, source)
    print(f"The ledger is that of {source}: {done.events:,} events.")
    if done.aside is not None:
        print(f"What was there is kept: {done.aside}")
    if not os.environ.get("INTERLACE_SECRET") and not (settings.home / "secret").exists():
        print(f"Restore {settings.home / 'secret'} too: without it, no key is recognised.", file=sys.stderr)
    return check_command(settings)


def export_command(
    settings: Settings,
    *,
    format: str,
    events: bool = False,
    since: str | None = None,
    until: str | None = None,
    output: Path | None = None,
) -> int:
    """Write the record as beancount or CSV to a file, whole or not at all, or to standard output."""
    if format not in FORMATS:
        raise ConfigError(f"--format {format!r} is not known; choose {' or '.join(FORMATS)}.")
    span = Span(_day(since, "--since"), _day(until, "--until"))
    with reading(settings) as connection:
        lines = FORMATS[format](connection, span, per_event=events)
        if output is None:
            sys.stdout.writelines(lines)
        else:
            _write(output, lines)
    return 0


def _day(text: str | None, option: str) -> str | None:
    try:
        return None if text is None else date.fromisoformat(text).isoformat()
    except ValueError:
        raise ConfigError(f"{option} {text!r} is not a day; write one such as 2026-01-31.") from None


def _write(path: Path, lines: Iterable[str]) -> None:
    try:
        with _whole(path) as file:
            file.writelines(lines)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}.") from error


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[TextIO]:
    """A file that takes the place of `path` when all is in it; private, as the ledger is."""
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            yield file
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink()
        raise
