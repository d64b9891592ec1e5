"""Writes the reference pages that are made from code: `python docs/generate.py` (`make reference`).

A test compares the pages with what this makes, so a new command, setting, error or metric cannot stay undocumented.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command
from typer.testing import CliRunner

from interlace import errors
from interlace.cli import app
from interlace.config import settings_reference
from interlace.gateway import wire
from interlace.ledger import RULES

sys.path.insert(0, str(Path(__file__).parent))
from generate_translation import translation_page

FOLDER = Path(__file__).parent / "reference"
MADE = "<!-- Made by docs/generate.py from the code; edit there. -->\n\n"


def command_page() -> str:
    """Every verb with its help text, as the terminal shows it."""
    parts = ["# Command line\n\n", MADE, "```text\n", help_text(()), "```\n"]
    for words in verbs(get_command(app)):
        parts += [f"\n## interlace {' '.join(words)}\n\n", "```text\n", help_text(words), "```\n"]
    parts += ["\nExit codes: 0 done, 1 failed, 2 wrong use or wrong configuration.\n"]
    return "".join(parts)


def verbs(command: Any, *words: str) -> Iterator[tuple[str, ...]]:
    """The words of every verb under `command`, in the order they are declared."""
    for name, child in getattr(command, "commands", {}).items():
        if getattr(child, "commands", None):
            yield from verbs(child, *words, name)
        else:
            yield *words, name


def help_text(words: tuple[str, ...]) -> str:
    """What `interlace WORDS --help` prints on a terminal of 100 columns."""
    result = CliRunner().invoke(app, [*words, "--help"], prog_name="interlace", terminal_width=100)
    if result.exit_code:
        raise RuntimeError(f"interlace {' '.join(words)} --help failed: {result.output}")
    return result.output.replace("\u2026", "...")


def settings_page() -> str:
    """A table of all settings."""
    rows = [
        f"| `{one.path}` | {_cell(one.kind)} | {_code(one.default)} | {_code(one.environment or '')} "
        f"| {_cell(one.doc)} |\n"
        for one in settings_reference()
    ]
    return (
        "# Settings\n\n" + MADE + "`interlace serve` reads `interlace.yaml` (or the file `--config` or "
        "`INTERLACE_CONFIG` names), then the environment, then its options; the later wins. `interlace config check` "
        "names the line of every mistake and its mend. `models[].name` means: `name` of each item under `models:`.\n\n"
        "| setting | kind | default | environment | meaning |\n|---|---|---|---|---|\n" + "".join(rows)
    )


def errors_page() -> str:
    """A table of all errors an HTTP caller can meet."""
    rows = [
        f"| {cls.status} | `{cls.type}` | {_code(cls.default_code or '')} | {_cell(inspect.getdoc(cls) or '')} |\n"
        for cls in sorted(set(_classes(errors.InterlaceError)), key=lambda cls: (cls.status, cls.__name__))
        if cls not in (errors.CheckpointError, errors.ConfigError)
    ]
    return (
        "# Errors\n\n" + MADE + "Errors have OpenAI's shape, "
        '`{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}`; `param` names the field of the request '
        "that is wrong. Every answer carries `x-request-id`. At `/v1/messages`, and at `/v1/models` for who sends "
        "`anthropic-version`, they have [Anthropic's shape](../how-to/anthropic-clients.md): `insufficient_quota` is "
        "402 there, and a full queue 529.\n\n"
        "| status | `type` | `code` | meaning |\n|---|---|---|---|\n" + "".join(rows)
    )


def _classes(root: type[errors.InterlaceError]) -> Iterator[type[errors.InterlaceError]]:
    for child in root.__subclasses__():
        if child.__module__ in (errors.__name__, wire.__name__):
            yield child
            yield from _classes(child)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def outcomes_page() -> str:
    """The closed list of how a request can end, in the order in which the conditions are looked at."""
    rows = [
        f"| `{outcome.value}` | {_cell(rule.meaning)} | {rule.status} | {_yes(rule.recorded)} | {_yes(rule.charged)} |"
        for outcome, rule in RULES.items()
    ]
    return (
        f"# Outcomes\n\n{MADE}"
        "How a request can end. The first whose condition holds is its outcome; every request has exactly one.\n"
        "The status is what a caller sees where nothing of the answer was sent before.\n\n"
        "| outcome | meaning | status | leaves a usage event | what it used is charged |\n|---|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n"
    )


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"


PAGES = {
    "cli.md": command_page,
    "settings.md": settings_page,
    "errors.md": errors_page,
    "outcomes.md": outcomes_page,
    "translation.md": lambda: translation_page(MADE),
}

if __name__ == "__main__":
    for name, make in PAGES.items():
        (FOLDER / name).write_text(make(), encoding="utf-8")
