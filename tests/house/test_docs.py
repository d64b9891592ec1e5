"""The documentation is true: its commands run, its settings exist, its generated pages are those of today's code."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from interlace.cli import app
from interlace.config import check_config
from interlace.tuning.settings import read_settings
from tests.support.serving import COMMAND, Serving, environment, free_port, serving

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Their bash and python blocks are run, top to bottom.
EXECUTED = (
    "README.md",
    "docs/tutorial/first-chat.md",
    "docs/tutorial/private-adapters.md",
    "docs/how-to/backup-and-restore.md",
    "docs/how-to/give-a-team-a-budget.md",
    "docs/how-to/responses.md",
    "docs/how-to/run-a-batch.md",
    "docs/explanation/why-the-bill-is-right.md",
)


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _blocks(path: Path, *languages: str) -> list[tuple[str, str]]:
    found = BLOCK.findall(path.read_text(encoding="utf-8"))
    return [(language, text) for language, text in found if language in languages]


# --- code blocks that run ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """The default model, served with a fresh home as `make serve` does, on a port of its own."""
    home = tmp_path_factory.mktemp("home")
    pull = [*COMMAND, "pull", str(smollm2_gguf), "--name", "smollm2-135m-instruct"]
    subprocess.run(pull, check=True, env=environment(home), timeout=120)
    with serving(home, free_port()) as there:
        yield there


def _for(server: Serving, text: str) -> str:
    """The block for this server: address, home and command are the only things changed."""
    text = text.replace("127.0.0.1:8080", server.url.removeprefix("http://"))
    text = text.replace("~/.interlace", str(server.home)).replace(".venv/bin/interlace", COMMAND[0])
    return text.replace(".venv/bin/python", sys.executable)


@pytest.mark.parametrize("page", EXECUTED)
def test_the_code_blocks_run(page: str, server: Serving, tmp_path: Path) -> None:
    """What a newcomer pastes works, block by block, and the model answers."""
    script = ["set -euo pipefail"]
    for number, (language, text) in enumerate(_blocks(ROOT / page, "bash", "python")):
        block = _for(server, text)
        if language == "python":
            file = tmp_path / f"block{number}.py"
            file.write_text(block)
            block = f"{sys.executable} {file}"
        script += [f"echo '--- block {number}'", block]
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)], env={**environment(server.home), "INTERLACE_URL": server.url},
        capture_output=True, text=True, check=False, timeout=200, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{server.log.read_text()}"
    outputs = re.split(r"--- block \d+\n", done.stdout)[1:]
    answers = [json.loads(text) for text in outputs if text.startswith("{") and '"chat.completion"' in text]
    assert answers or any(word in page for word in ("explanation", "responses", "backup"))
    answers = [answer.get("response", {}).get("body", answer) for answer in answers]  # a line of a batch's output
    assert all("Paris" in answer["choices"][0]["message"]["content"] for answer in answers[:1])
    if "budget" in page:
        shown = _blocks(ROOT / page, "text")[0][1].splitlines()
        assert [line.split() for line in shown] == [line.split() for line in outputs[4].splitlines()[: len(shown)]]
    if "adapters" in page:
        _adapters_are_private(outputs)
    if "first-chat" in page:
        assert outputs[3].startswith("data: {")
        assert outputs[3].rstrip().endswith("data: [DONE]")
        assert outputs[4].strip()
        assert "Paris" in outputs[5]


def _adapters_are_private(outputs: list[str]) -> None:
    """The base and both adapters answer differently, and whoever is of another organisation is told nothing of them."""
    base, support, poems = (json.loads(text)["choices"][0]["message"]["content"] for text in outputs[4:7])
    assert len({base, support, poems}) == 3
    refused, unknown = re.findall(r"\{\"error\".*?\}\}", outputs[7])
    assert "model_not_found" in refused
    assert refused.replace(":support", ":nothing") == unknown
    ours, others = outputs[8].split("others see:")
    assert ours.count("smollm2-135m-instruct:") == 2
    assert others.count("smollm2-135m-instruct") == 1
    assert "smollm2-135m-instruct:poems" in outputs[9]


# --- words that must exist --------------------------------------------------------------------------------------


def _verbs(command: object, *words: str) -> Iterator[tuple[str, ...]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield words
        return
    for name, child in children.items():
        yield from _verbs(child, *words, name)


VERBS = list(_verbs(get_command(app)))


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_every_verb_has_help_and_an_example(words: tuple[str, ...]) -> None:
    """`--help` of each verb shows how it is used, and the reference page has it."""
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0
    assert f"interlace {' '.join(words)}" in result.output.partition("Example:")[2]
    assert f"## interlace {' '.join(words)}\n" in (ROOT / "docs/reference/cli.md").read_text()


def test_the_generated_pages_are_up_to_date(tmp_path: Path) -> None:
    """The pages made from code say what the code says today; else: make reference."""
    script = (
        "import sys, runpy; from pathlib import Path\n"
        "made = runpy.run_path('docs/generate.py')\n"
        "stale = [n for n, make in made['PAGES'].items() if (made['FOLDER'] / n).read_text('utf-8') != make()]\n"
        "sys.exit(f'stale: {stale}' if stale else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_commands_in_the_prose_exist(path: Path) -> None:
    """Each `$ interlace VERB` is a verb, and each `$ make TARGET` a target."""
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for _, text in _blocks(path, "console", "bash"):
        for line in re.findall(r"(?:^\$ |\| ?)(?:\.venv/bin/)?interlace (.+)$", text, re.MULTILINE):
            words = tuple(line.split("#")[0].split())
            assert any(words[: len(verb)] == verb for verb in VERBS), line
        for target in re.findall(r"^\$ make ([a-z-]+)", text, re.MULTILINE):
            assert target in targets, target


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_configurations_in_the_prose_are_good(path: Path, tmp_path: Path) -> None:
    """Each interlace.yaml that is shown passes `interlace config check`, and each YAML of `interlace tune` its reader;
    each JSON body is JSON."""
    for language, text in _blocks(path, "yaml", "json"):
        if language == "json":
            json.loads(text)
        elif text.startswith("base: "):
            (tmp_path / "tune.yaml").write_text(text)
            assert read_settings(tmp_path / "tune.yaml", {}).base
        elif "scrape_configs" not in text:
            file = tmp_path / "interlace.yaml"
            file.write_text(text)
            keys = dict.fromkeys(re.findall(r"\$\{(\w+)\}", text), "sk-example")
            assert check_config(file, keys) == []


def test_every_metric_is_documented() -> None:
    """The metrics page names exactly the metrics that exist, and the how-to asks for no others."""
    names = "metrics", "route_metrics", "processes/across"
    source = "".join((ROOT / f"src/interlace/gateway/{name}.py").read_text() for name in names)
    reference = (ROOT / "docs/reference/metrics.md").read_text()
    shown = set(re.findall(r"`(interlace_\w+)`", reference))
    literal = set(re.findall(r'"(interlace_\w+)"', source))
    fields = set(re.findall(r'^ {12}\("(\w+)", "', source, re.MULTILINE))
    exist = literal | {f"interlace_engine_{field}" for field in fields}
    assert {name.removesuffix("_total") for name in shown} == {name.removesuffix("_total") for name in exist}
    asked = set(re.findall(r"(interlace_\w+)", (ROOT / "docs/how-to/monitoring.md").read_text()))
    assert {name.removesuffix("_bucket") for name in asked} <= shown


def test_the_site_builds(tmp_path: Path) -> None:
    """`mkdocs build --strict`: no dead link, no page outside the navigation, every docstring rendered."""
    mkdocs = str(Path(sys.executable).with_name("mkdocs"))
    command = [mkdocs, "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environ = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
