"""`interlace bench`: how fast a model answers, 1, 4, 16, 32 chats at once, through the running server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from interlace.config import Settings, load_settings
from interlace.errors import ConfigError, InterlaceError
from interlace.gateway.asking import Where
from interlace.gateway.bench.figures import Level, percentile, total
from interlace.gateway.bench.load import Run
from interlace.gateway.bench.own_server import own_server
from interlace.gateway.bench.picture import bars, svg
from interlace.gateway.bench.plan import MOST_STREAMS, WARM_TOKENS, Plan, as_json
from interlace.gateway.bench.progress import progress_for_people, streams_of
from interlace.gateway.bench.stream import Target
from interlace.gateway.chat import ChatError, NoServer, Server, _choose, _wait_until_loaded, server_url
from interlace.gateway.ledger_client import perform
from interlace.gateway.serve import loop_factory
from interlace.ledger.prices import KINDS, Price
from interlace.models import print_table
from interlace.money import DOLLAR, show_moment, show_usd

SMALL_NANOS = DOLLAR // 20  # what may be spent without asking: five cents
INTERRUPTED = 130  # as shells have it for ctrl-C
_COST_SECONDS = 20.0  # for asking what was spent
_LATE_SECONDS = 3.0  # of them, for what is not in the books yet
_HEADINGS = ("STREAMS", "ANSWERED", "ERRORS", "TOKENS/S", "PER STREAM", "FIRST TOKEN P50", "P95", "BETWEEN P50", "P95",
             "USD")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shown:
    """How the figures are told."""

    as_json: bool = False
    plot: Path | None = None
    yes: bool = False


def bench_command(plan: Plan, where: Where, shown: Shown) -> int:
    """Measure one model. Exit codes: 0 every chat was answered, 1 some failed, 2 wrong use, or spending was not agreed
    to, 130 stopped; but for 2, what was measured has been told.

    Raises `ChatError` where there is no such model, and `ConfigError`.
    """
    _check(plan, shown.plot)
    settings = load_settings(where.config, where.env, {"home": where.home}, need_keys=False)
    try:
        with _server(settings, where) as server, contextlib.closing(server):
            return _measured(plan, server, replace(where, url=server.url), shown)
    except KeyboardInterrupt:
        print("Stopped before anything was measured.", file=sys.stderr)
        return INTERRUPTED


def _measured(plan: Plan, server: Server, where: Where, shown: Shown) -> int:
    row = _row(server, plan.model)
    plan = replace(plan, whole=row.get("engine") == "local")
    most_nanos = _most(plan, row, where)
    if not _agreed(plan, row, most_nanos, yes=shown.yes):
        return 2
    began = time.time_ns() // 1000
    with progress_for_people(plan) as progress:
        run = Run(plan, Target(server.url, server.key, server.trust), progress)
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(run.go())
    with contextlib.suppress(KeyboardInterrupt, InterlaceError):
        _ask_costs(server, run.levels)
    if shown.plot is not None:
        _draw(shown.plot, plan, began, run.levels)
    if shown.as_json:
        _print_json(plan, server, row, began, most_nanos, run)
    else:
        _print(plan, run)
    if run.stopped:
        return INTERRUPTED
    good = run.levels and all(level.good and not level.errors for level in run.levels)
    return 0 if good else 1


def _check(plan: Plan, picture: Path | None) -> None:
    """Raises `ConfigError` for what cannot be measured or drawn, before anything is asked."""
    if not plan.streams or not all(1 <= one <= MOST_STREAMS for one in plan.streams):
        raise ConfigError(f"--streams: name numbers from 1 to {MOST_STREAMS}, with commas between, such as 1,4,16,32.")
    if picture is not None and picture.suffix != ".svg":
        raise ConfigError(f"--plot {picture}: the picture is an SVG file; name one that ends in .svg.")
    if picture is not None and not picture.absolute().parent.is_dir():
        raise ConfigError(f"--plot {picture}: there is no folder {picture.absolute().parent}; make it first.")


# --- whom to ask -------------------------------------------------------------------------------------------------


@contextmanager
def _server(settings: Settings, where: Where) -> Iterator[Server]:
    """The one that is named, or runs; else one of our own for as long as this lasts."""
    named = where.url or where.env.get("INTERLACE_URL")
    server = Server.reached_as(named or server_url(settings), where.key, settings, where.env)
    try:
        server.models()
    except NoServer:
        server.close()
        if named:
            raise
    else:
        yield server
        return
    print("No server runs: starting one for the measurement, with the same configuration ...", file=sys.stderr)
    with own_server(where) as url:
        yield Server.reached_as(url, where.key, settings, where.env)


def _row(server: Server, model: str) -> Mapping[str, Any]:
    """What the server says of the model, once none is loading: that would be measured too."""
    _choose(server, model)
    for row in server.models():
        _wait_until_loaded(server, str(row["id"]))
    row = next(row for row in server.models() if row["id"] == model)
    if row.get("kind", "chat") not in ("chat", None):
        raise ChatError(f"{model} makes {row['kind']}; interlace bench measures chats.")
    if row.get("state", "ready") != "ready":
        raise ChatError(f"{model} cannot be measured: it is {row['state']}. The server's log says why.")
    return row


# --- money -------------------------------------------------------------------------------------------------------


def _most(plan: Plan, row: Mapping[str, Any], where: Where) -> int | None:
    """The most that the measurement can cost, in nano-dollars; None where no price is known here. Of a route: every
    one of its models, as if each were asked each time."""
    try:
        listed = perform("prices.list", {"state": "current"}, where)
    except InterlaceError:
        return None
    prices = {}
    for one in listed:
        amounts = {kind: one["nanos_per_million"][kind] for kind in KINDS}
        prices[one["model"]] = Price(model=one["model"], since=0, **amounts, request=one["nanos_per_request"])
    names = row.get("models") or [plan.model]
    if not all(name in prices for name in names):
        return None
    return sum(plan.most_nanos(prices[name]) for name in names)


def _agreed(plan: Plan, row: Mapping[str, Any], most_nanos: int | None, *, yes: bool) -> bool:
    """Whether so much may be spent: little may always, more where a person says so, or said `--yes`."""
    asked = f"This asks {plan.model} at most {plan.requests:,} chats"
    if most_nanos is None and row.get("engine") == "local":
        return True  # of this gateway's own
    if most_nanos is None:
        told = f"{asked}; what they may cost is not known here."
    elif most_nanos:
        told = f"{asked}, for at most ${show_usd(-(-most_nanos // 10**5) * 10**5)} by its price."
    else:
        return True
    print(told, file=sys.stderr)
    if yes or (most_nanos is not None and most_nanos <= SMALL_NANOS):
        return True
    if sys.stdin.isatty() and sys.stderr.isatty():
        print("Go on? [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    print("Error: Say --yes to agree, or ask for less with --streams, --tokens, --rounds.", file=sys.stderr)
    return False


def _ask_costs(server: Server, levels: Sequence[Level]) -> None:
    """Fill in what each chat cost, as the server recorded it; nothing where it keeps no books."""
    began = time.monotonic()
    for sample in (one for level in levels for one in (*level.warm, *level.samples) if not one.refused):
        now = time.monotonic()
        late = sample.stopped or sample.error is not None  # it is settled a moment after we left
        sample.cost_nanos = server.spent(sample.id, patience_seconds=max(began + _LATE_SECONDS - now, 0) * late)
        if (sample.cost_nanos is None and not late) or now > began + _COST_SECONDS:
            return


# --- telling -----------------------------------------------------------------------------------------------------


def _print(plan: Plan, run: Run) -> None:
    levels = [level for level in run.levels if level.samples or level.errors]
    cells = [_cells(level) for level in levels]
    if cells:
        print_table(_HEADINGS, cells, right=_HEADINGS)
    letter = "█" if _can_say("█") else "#"
    if lines := bars(levels, letter=letter):
        print("\nTokens a second, all streams together:")
        print("\n".join(lines))
    sys.stdout.flush()
    for line in _notes(plan, run, levels):
        print(line, file=sys.stderr)


def _cells(level: Level) -> list[str]:
    cost = level.cost_nanos
    return [
        f"{level.streams}{'*' if level.stopped else ''}",
        str(len(level.good)),
        str(len(level.errors)),
        _number(level.tokens_per_second),
        _number(level.stream_tokens_per_second),
        *(_milliseconds(percentile(level.firsts, percent)) for percent in (50, 95)),
        *(_milliseconds(percentile(level.gaps, percent)) for percent in (50, 95)),
        "" if cost is None else show_usd(cost),
    ]


def _notes(plan: Plan, run: Run, levels: Sequence[Level]) -> Iterator[str]:
    """What the figures do not say of themselves."""
    good = [one for level in levels for one in level.good]
    if good:
        read = sum(one.prompt_tokens or 0 for one in good) / len(good)
        made = sum(one.tokens for one in good) / len(good)
        warm = min(plan.tokens, WARM_TOKENS)
        yield f"A question has {read:.0f} tokens, an answer {made:.0f} (means)."
        yield f"Each stream was warmed up by an answer of at most {warm} tokens: it is in the cost, not in the figures."
        pieces = sum(one.pieces for one in good)
        if pieces and (each := sum(one.tokens for one in good) / pieces) > 1.1:
            yield f"The text came in pieces of {each:.1f} tokens: the times between are those between pieces."
    cost = total(level.cost_nanos for level in run.levels)
    if cost is not None:
        unknown = sum(level.cost_unknown for level in run.levels)
        beside = f", beside {unknown} chats of which it is not known: interlace usage has them" if unknown else ""
        yield f"All of it cost ${show_usd(cost)}{beside}."
    for reason, count in Counter(error for level in run.levels for error in level.errors).most_common(5):
        yield f"{count} failed: {_printable(reason)}"
    if run.stopped:
        unfinished = [streams_of(level) for level in run.levels if level.stopped]
        yield f"Stopped: {', '.join(unfinished)} not measured to the end{' (*)' if levels else ''}."
    elif len(run.levels) < len(plan.streams):
        yield "Every chat of a level failed, so no more were asked."


def _print_json(plan: Plan, server: Server, row: Mapping[str, Any], began: int, most: int | None, run: Run) -> None:
    cost = total(level.cost_nanos for level in run.levels)
    reasons = Counter(error for level in run.levels for error in level.errors)
    value = {
        "model": plan.model,
        "engine": row.get("engine"),
        "url": server.url,
        "started_at": show_moment(began),
        "settings": as_json(plan),
        "stopped": run.stopped,
        "levels": [level.json() for level in run.levels],
        "errors": [{"message": message, "count": count} for message, count in reasons.most_common()],
        "most_nanos": most,
        "cost_nanos": cost,
        "cost_usd": None if cost is None else show_usd(cost),
        "cost_unknown": sum(level.cost_unknown for level in run.levels),
    }
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def _draw(file: Path, plan: Plan, began: int, levels: Sequence[Level]) -> None:
    about = f"{show_moment(began)}; answers of at most {plan.tokens} tokens, questions of about {plan.prompt_tokens}"
    try:
        file.write_text(svg(plan.model, about, [level for level in levels if level.good]), encoding="utf-8")
    except OSError as error:  # what was measured must still be told
        print(f"interlace: {file} cannot be written: {error.strerror or error}.", file=sys.stderr)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{1000 * seconds:,.1f} ms" if seconds < 0.1 else f"{1000 * seconds:,.0f} ms"


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _can_say(letter: str) -> bool:
    try:
        letter.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def where_of(*, url: str | None, key: str | None, config: Path | None, home: Path | None) -> Where:
    """Of the options of a command."""
    return Where(os.environ, url=url, key=key, config=config, home=home)
