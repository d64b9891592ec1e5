"""`interlace bench`: how fast a model answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interlace.cli.options import ApiKey, Config, Home, Json, Url


def bench(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A served model or route.")],
    streams: Annotated[
        str, typer.Option(metavar="N,N,...", help="Chats at once, one measurement for each number.")
    ] = "1,4,16,32",
    tokens: Annotated[int, typer.Option(metavar="N", help="Longest answer.", min=1, max=1_000_000)] = 128,
    prompt_tokens: Annotated[
        int, typer.Option(metavar="N", help="Length of a question, about.", min=1, max=1_000_000)
    ] = 64,
    shared_prefix: Annotated[
        int, typer.Option(metavar="N", help="So many tokens of it are the same for all: caches help.", min=0)
    ] = 0,
    rounds: Annotated[int, typer.Option(metavar="N", help="Chats of each stream.", min=1, max=10_000)] = 2,
    seconds: Annotated[
        float | None, typer.Option(metavar="S", help="Begin no more chats of a measurement after this.", min=0.1)
    ] = None,
    timeout: Annotated[
        float, typer.Option(metavar="S", help="Longest time for one answer.", min=0.1, max=86_400)
    ] = 120.0,
    yes: Annotated[bool, typer.Option("--yes", help="Agree to what it may cost.")] = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw the figures into this file.")] = None,
    url: Url = None,
    key: ApiKey = None,
    config: Config = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Measure how fast a model answers, several chats at once.

    Through the running server; where none runs, one is started for the measurement, with the same configuration. No
    question is like another. Whatever may cost more than five cents needs a yes. ctrl-C tells what was measured so far.
    Exit codes: 0 all was answered, 1 something failed, 2 wrong use or no yes, 130 stopped.

    Example: interlace bench smollm2-135m-instruct --streams 1,8 --plot figures.svg
    """
    from interlace.gateway.bench.plan import Plan
    from interlace.gateway.bench_commands import Shown, bench_command, where_of

    plan = Plan(
        model=model,
        streams=_numbers(streams),
        tokens=tokens,
        prompt_tokens=prompt_tokens,
        shared_prefix=shared_prefix,
        rounds=rounds,
        seconds=seconds,
        timeout=timeout,
        whole=False,
    )
    where = where_of(url=url, key=key, config=config, home=home)
    raise typer.Exit(bench_command(plan, where, Shown(as_json=as_json, plot=plot, yes=yes)))


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no list of numbers; write some with commas between", param_hint="--streams"
        ) from None
