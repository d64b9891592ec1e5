"""The ledger: reachable, at the right step, writable, its sums right; the clock that dates it; prices."""

from __future__ import annotations

import os
import tempfile
import time
import unicodedata
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from interlace.config import ModelSettings, public_name
from interlace.errors import ConfigError
from interlace.gateway.doctor.findings import Case, Finding, fail, ok, warn
from interlace.ledger import health
from interlace.ledger.reading import reading

WATCH_SECONDS = 0.25  # how long the two clocks are compared
_APART_SECONDS = 0.05  # by how much they may differ then
_FILES_SECONDS = 2.0  # by how much a file's time may differ: coarse ones count whole seconds
_AHEAD_SECONDS = 60.0  # by how much the record may be ahead of the clock
_DAY_US = 86_400_000_000


def database(case: Case) -> Iterator[Finding]:
    """The ledger itself."""
    file = health.database_file(case.settings)
    if file is not None and not file.exists():
        yield warn(f"there is no ledger at {file} yet", "Nothing, if this is a first start: interlace serve makes it")
        return
    try:
        with reading(case.settings) as connection:
            at, old = health.step_of(connection), health.too_old(connection)
    except ConfigError as error:
        mend = (
            f"Restore a backup: interlace ledger restore FILE, with {file} moved away" if file else "Start the database"
        )
        yield fail(error.message.removesuffix("."), mend)
        return
    if at is None:
        yield warn("it is empty", "Nothing, if this is a first start: interlace serve makes the tables")
        return
    if at < health.HEAD:
        how = "interlace ledger backup FILE" if file else "pg_dump"
        mend = f"Make a backup ({how}); the next start brings it up"
        yield warn(f"at step {at} of the schema, and this version's is {health.HEAD}", mend)
    elif old:
        mend = "Install the newer Interlace that used it last, or restore a backup of before"
        yield fail(f"at step {at} of the schema, which this version ({health.HEAD}) does not know", mend)
        return
    elif at > health.HEAD:
        mend = "Bring this machine to the version that changed it; until then this one may go on"
        yield warn(f"at step {at} of the schema, and this version's is {health.HEAD}", mend)
    if (why := health.why_not_writable(case.settings)) is not None:
        mend = "Look for a full or read-only disk, another user's file, or a program that holds the database"
        if file is None:
            mend = "Name the primary in ledger.url, and grant its user every right on the tables"
        yield fail(f"nothing can be written: {why}", mend)
    else:
        yield ok(f"{file or 'on its server'}, step {at}, takes writes")


def drift(case: Case) -> Iterator[Finding]:
    """Balances against events, of this month and the last."""
    if not _there(case):
        return
    since = (date.today().replace(day=1) - timedelta(days=1)).replace(day=1)  # noqa: DTZ011 - a month more or less
    with reading(case.settings) as connection:
        wrong = list(health.drift(connection, since))
    for whose, expected, found in wrong[:3]:
        what = f"the balance of {whose} is {found}, its events are {expected} nano-dollars"
        yield fail(what, "interlace ledger check, which says of every event and sum what is wrong")
    if len(wrong) > 3:
        yield fail(f"{len(wrong) - 3} more balances are not the sum of their events", "interlace ledger check")
    if not wrong:
        yield ok(f"every balance from {since:%Y-%m} on is the sum of its events")


def clock(case: Case) -> Iterator[Finding]:
    """The time of day, against all that can be asked without leaving: it dates events, budgets and prices."""
    began, ticks = time.time(), time.monotonic()
    time.sleep(WATCH_SECONDS)
    apart = abs((time.time() - began) - (time.monotonic() - ticks))
    mend = "Let a time service keep the clock: systemctl enable --now systemd-timesyncd"
    bad = False
    if apart > _APART_SECONDS:
        bad = True
        yield warn(f"the time of day jumps: by {apart:.2f} s within {WATCH_SECONDS:g} s", mend)
    if (off := _of_files(case.settings.home)) is not None and abs(off) > _FILES_SECONDS:
        bad = True
        yield warn(f"files in {case.settings.home} are dated {off:+.0f} s from this machine's clock", mend)
    newest = theirs = None
    if _there(case):
        with reading(case.settings) as connection:
            newest, theirs = health.newest_event(connection), health.clock_of(connection)
    if theirs is not None and abs(theirs - time.time()) > _FILES_SECONDS:
        bad = True
        yield warn(f"the database's clock is {theirs - time.time():+.0f} s from this machine's", mend)
    if newest is not None and (ahead := newest / 1e6 - time.time()) > _AHEAD_SECONDS:
        bad = True
        yield fail(f"the newest usage event is {ahead / 60:.0f} minutes in the future: the clock was set back", mend)
    if not bad:
        yield ok(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC, and not behind the record")


def prices(case: Case) -> Iterator[Finding]:
    """Whether every served model has one, and when those of providers were last looked at."""
    now = time.time_ns() // 1000
    if _there(case):
        with reading(case.settings) as connection:
            found = dict(health.price_dates(connection, now))
    else:
        found = {}
    found |= {price.model: now for price in case.settings.prices if price.since <= now and price.model not in found}
    found |= {model.name: now for model in case.settings.models if model.name not in found and _will_be_free(model)}
    bad = False
    for model in case.settings.models:
        recorded = found.get(model.name, found.get(model.priced_as))  # of another: the next start writes that down
        if recorded is None:
            bad = True
            yield fail(f"{model.name} has none, so it is refused", f"interlace prices create {model.name} --prompt ...")
        elif model.engine != "local" and now - recorded > case.price_days * _DAY_US:
            bad = True
            days = (now - recorded) // _DAY_US
            yield warn(f"that of {model.name} was recorded {days} days ago", "interlace prices sync compares it")
    if not bad:
        yield ok(f"{len(case.settings.models)} of {len(case.settings.models)} models have one")


def owners(case: Case) -> Iterator[Finding]:
    """Whether the organisations to whom models and adapters belong are there. Whoever takes a name has what is said to
    be that name's, so a missing one, or one that was renamed, is more than a typing error."""
    said = [(model.name, model.owner) for model in case.settings.models]
    said += [(public_name(model.name, one.name), one.owner) for model in case.settings.models for one in model.adapters]
    owned = [(name, unicodedata.normalize("NFC", owner)) for name, owner in said if owner]
    there: frozenset[str] = frozenset()
    if owned and _there(case):
        with reading(case.settings) as connection:
            there = health.organisations_of(connection)
    lost = [(name, owner) for name, owner in owned if owner not in there]
    for name, owner in lost:
        mend = f"Make it (interlace orgs create {owner}), or write an organisation's id, which stays when a name goes"
        yield fail(f"{name} belongs to {owner}, and no organisation is called so: nobody sees it", mend)
    if not lost:
        yield ok(f"the owners of {len(owned)} models and adapters are there" if owned else "nothing has an owner")


def _will_be_free(model: ModelSettings) -> bool:
    """Checkpoints of the catalogue cost nothing until somebody says otherwise: the next start writes that down."""
    from interlace.models import known_models

    return model.engine == "local" and not model.priced_as and model.checkpoint in known_models()


def _there(case: Case) -> bool:
    """Whether there is a ledger to look into; `database` says so where there is none."""
    try:
        with reading(case.settings) as connection:
            return health.step_of(connection) is not None
    except ConfigError:
        return False


def _of_files(folder: Path) -> float | None:
    """Seconds by which the file system's clock is ahead; None where no file can be made."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
            return os.fstat(file.fileno()).st_mtime - time.time()
    except OSError:
        return None
