"""`interlace bench` against a provider on loopback: the figures are true, no money goes unasked, and it always ends."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from interlace.gateway.bench.figures import Level, Sample, percentile
from interlace.gateway.bench.picture import bars, svg
from interlace.gateway.bench.plan import Plan, Questions
from interlace.ledger.prices import Price
from tests.support.billing import billing, priced, tenants
from tests.support.certificates import pair
from tests.support.provider import Provider, running_provider
from tests.support.served import Served, patiently, served
from tests.support.serving import environment, free_port

PROMPT, ANSWER = 2, 5  # nano-dollars a token
DEAR = 10**6  # nano-dollars a token: a tenth of a cent, so that a hundred tokens are not small change


@dataclass
class Said:
    """How the command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """What a program reads."""
        return json.loads(self.out)


Bench = Callable[..., Said]


def command(*words: str) -> list[str]:
    """`interlace bench WORDS`, as a process."""
    return [sys.executable, "-m", "interlace", "bench", *words]


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    """One for all."""
    with running_provider() as running:
        yield running


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory, provider: Provider) -> Iterator[Served]:
    """A gateway before it, where each token has its price; what is called dear costs more than a yes is needed for."""
    models = {"slow": "slow:12", "dear": "slow:12", "once": "instant:7", "hang": "hang-mid", "refused": "status:400",
              "first": "hang-first", "cut": "cut", "long": "slow:4000", "flaky": "flaky:400,3"}  # fmt: skip
    prices = [priced(name, PROMPT, DEAR if name == "dear" else ANSWER) for name in models]
    folder = tmp_path_factory.mktemp("bench")
    with billing(folder, provider, models, prices=prices) as running:
        yield running


@pytest.fixture
def bench(there: Served) -> Bench:
    """`interlace bench WORDS` at that gateway, with the key kept at its home."""

    def run(*words: str, **env: str) -> Said:
        done = subprocess.run(
            command(*words, "--url", there.url), env=environment(there.folder / "home") | env, cwd=there.folder,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return Said(done.returncode, done.stdout, done.stderr)

    return run


def questions(provider: Provider, script: str) -> list[str]:
    """What the provider was asked, in order."""
    return [body["messages"][-1]["content"] for body in provider.bodies(script)]


# --- figures -----------------------------------------------------------------------------------------------------


def test_the_figures_are_what_was_asked_and_what_the_books_say(bench: Bench, there: Served, provider: Provider) -> None:
    """Requests, tokens and costs of each level, warm-up apart; were a chat lost or billed twice, the sums differ."""
    before = len(there.usage())
    done = bench("slow", "--streams", "1,3", "--rounds", "2", "--tokens", "10", "--json")
    assert done.code == 0, done.out + done.err
    told = done.json
    assert [(one["streams"], one["requests"], one["answered"], one["tokens"]) for one in told["levels"]] == [
        (1, 2, 2, 20), (3, 6, 6, 60),
    ]  # fmt: skip
    events = there.usage()[before:]
    assert len(events) == 4 + 8, "each stream is warmed up once for each level"
    assert told["cost_nanos"] == sum(event.cost_nanos for event in events) == sum(
        one["cost_nanos"] for one in told["levels"]
    )  # fmt: skip
    assert told["cost_nanos"] <= told["most_nanos"]
    for one in told["levels"]:
        assert one["first_token_ms"]["p50"] >= 5, "the provider waits so long"
        assert 4 <= one["between_pieces_ms"]["p50"] <= one["between_pieces_ms"]["p95"]
        assert one["tokens_per_piece"] == 1
        assert one["seconds"] * one["tokens_per_second"] == pytest.approx(one["tokens"])


def test_no_question_is_like_another(bench: Bench, provider: Provider) -> None:
    """Else the cache of prefixes, here or at the provider, answers, and the first token comes too soon to be true."""
    provider.seen.clear()
    assert bench("once", "--streams", "2", "--rounds", "4", "--prompt-tokens", "80").code == 0
    asked = questions(provider, "instant:7")
    assert len({" ".join(question.split()[:8]) for question in asked}) == len(asked) == 10
    assert {len(question.split()) for question in asked} == {80}
    provider.seen.clear()
    shared = ("--prompt-tokens", "80", "--shared-prefix", "40")
    assert bench("once", "--streams", "2", "--rounds", "4", *shared).code == 0
    asked = questions(provider, "instant:7")
    assert len({" ".join(question.split()[:40]) for question in asked}) == 1
    assert len(set(asked)) == 10


def test_the_table_for_people(bench: Bench) -> None:
    """Each level is a row, its cost in the last column, and below what the numbers do not say themselves."""
    done = bench("slow", "--streams", "1,2", "--rounds", "1", "--tokens", "10")
    assert done.code == 0, done.err
    rows = [line.split() for line in done.out.splitlines()]
    assert rows[0][:3] == ["STREAMS", "ANSWERED", "ERRORS"]
    assert [row[:3] for row in rows[1:3]] == [["1", "1", "0"], ["2", "2", "0"]]
    assert float(rows[1][-1]) > 0
    assert sum("█" in line for line in done.out.splitlines()) == 2
    assert "warmed up by an answer of at most 8 tokens" in done.err
    assert "All of it cost $0.0000" in done.err


def test_figures_of_a_level() -> None:
    """Rates and times from moments that are known: a mistake here would lie to every user the same way."""
    level = Level(2, began=10.0, ended=12.0)
    for start in (10.0, 11.0):
        sample = Sample(start)
        for moment in (0.25, 0.5, 1.0):
            sample.piece(start + moment)
        sample.completion_tokens = 4
        level.samples.append(sample)
    assert level.tokens_per_second == 4.0
    assert level.stream_tokens_per_second == 3 / 0.75
    assert level.firsts == [0.25, 0.25]
    assert (percentile(level.gaps, 50), percentile(level.gaps, 95)) == (0.25, 0.5)
    assert level.tokens_per_piece == 4 / 3
    cut = Sample(11.0, error="cut")
    cut.piece(11.5)
    level.samples.append(cut)
    assert level.tokens == 9, "what came before an error was made too"
    assert len(level.firsts) == 2, "but a failed chat has no say in the times"
    assert [percentile(range(1, 101), percent) for percent in (50, 95, 99)] == [50, 95, 99]
    assert percentile([], 50) is None


# --- money -------------------------------------------------------------------------------------------------------


def test_nothing_dear_is_asked_without_a_yes(bench: Bench, provider: Provider) -> None:
    """A script, or a hand that slipped, must not spend dollars: nothing at all is sent, and the amount is named."""
    provider.seen.clear()
    done = bench("dear", "--streams", "4", "--rounds", "2", "--tokens", "100")
    assert (done.code, done.out) == (2, "")
    assert "at most 12 chats, for at most $0.83" in done.err
    assert "--yes" in done.err
    assert provider.seen == []
    done = bench("dear", "--streams", "1", "--rounds", "1", "--tokens", "100", "--yes")
    assert done.code == 0
    assert len(provider.seen) == 2


def test_a_person_at_the_terminal_is_asked(there: Served, provider: Provider) -> None:
    """Who answers no has spent nothing; who answers yes sees a bar, and the figures."""
    for answer, code in ((b"n\n", 2), (b"y\n", 0)):
        provider.seen.clear()
        reader, writer = pty.openpty()
        os.write(reader, answer)
        words = ("dear", "--streams", "1", "--rounds", "1", "--tokens", "100", "--url", there.url)
        process = subprocess.Popen(
            command(*words), env=environment(there.folder / "home") | {"TERM": "xterm", "COLUMNS": "100"},
            cwd=there.folder, stdin=writer, stdout=subprocess.PIPE, stderr=writer,
        )  # fmt: skip
        os.close(writer)
        seen = _read_all(reader)
        assert process.wait(60) == code, seen
        assert b"Go on? [y/N]" in seen
        assert len(provider.seen) == (0 if code else 2)
        assert (b"1 stream" in seen) == (code == 0)
        assert process.stdout is not None
        process.stdout.close()


def _read_all(reader: int) -> bytes:
    seen = b""
    try:
        while chunk := os.read(reader, 65536):
            seen += chunk
    except OSError:  # how Linux says that the writing end is closed
        pass
    finally:
        os.close(reader)
    return seen


def test_a_price_that_cannot_be_seen_needs_a_yes(tmp_path: Path, provider: Provider) -> None:
    """A key that may not read prices does not make a provider's model free."""
    (who,) = tenants(tmp_path, {})
    with billing(tmp_path, provider, {"once": "instant:7"}) as there:
        words = ("once", "--streams", "1", "--rounds", "1", "--url", there.url, "--key", who.text)
        run = {"env": environment(tmp_path / "home"), "cwd": tmp_path, "capture_output": True, "text": True}
        done = subprocess.run(command(*words), check=False, timeout=60, stdin=subprocess.DEVNULL, **run)
        assert done.returncode == 2
        assert "may cost is not known" in done.stderr
        assert not there.usage()
        done = subprocess.run(command(*words, "--yes"), check=False, timeout=60, stdin=subprocess.DEVNULL, **run)
        assert done.returncode == 0
        assert "All of it cost" in done.stderr, "what it did cost, its own key may know"


def test_the_most_is_never_less_than_the_cost() -> None:
    """The bound that a person agrees to counts every chat, warm-up too, each answer at its longest."""
    price = Price(model="m", since=0, prompt=10**6, completion=10**7, request=7)
    plan = Plan("m", (1, 4), 100, 50, 0, 3, None, 60.0, whole=False)
    assert plan.requests == 5 * 4
    longest = max(len(Questions(plan).next().encode()) for _ in range(200))
    answers = 5 * (3 * 100 + 8) * 10
    assert plan.most_nanos(price) >= answers + plan.requests * (longest + 7)


def test_only_our_own_models_are_told_to_go_on() -> None:
    """An answer that may end when it likes makes rates of several streams differ by chance; a provider that does not
    know the field would refuse each chat."""
    plan = Plan("m", (1,), 100, 50, 0, 1, None, 60.0, whole=True)
    assert plan.body("q", 7)["ignore_eos"] is True
    assert plan.body("q", 7)["max_tokens"] == 7
    assert "ignore_eos" not in replace(plan, whole=False).body("q", 7)


# --- it always ends ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "reason"),
    [("hang", "no whole answer within 0.5 seconds"), ("first", "no whole answer within 0.5 seconds"),
     ("refused", "400: "), ("cut", "")],
)  # fmt: skip
def test_a_model_that_does_not_answer_is_told_and_left(
    bench: Bench, provider: Provider, model: str, reason: str
) -> None:
    """Where all fail while warming up, no more are asked: neither time nor money goes into a model that is down."""
    provider.seen.clear()
    done = bench(model, "--streams", "2,8", "--timeout", "0.5", "--json")
    assert done.code == 1
    assert [level["streams"] for level in done.json["levels"]] == [2]
    assert sum(error["count"] for error in done.json["errors"]) == 2
    assert all(reason in error["message"] for error in done.json["errors"])
    assert done.json["levels"][0]["tokens_per_second"] is None
    assert done.json["levels"][0]["seconds"] < 15, "the provider hangs for thirty"
    assert len(provider.seen) <= 4, "the gateway may try again, not we"
    assert done.json["cost_unknown"] == {"refused": 0, "first": 2}.get(model, done.json["cost_unknown"])


def test_some_errors_are_counted_beside_the_figures(bench: Bench) -> None:
    """A benchmark that leaves failures out flatters; the exit code says that there were some."""
    done = bench("flaky", "--streams", "4", "--rounds", "2", "--tokens", "4")
    assert done.code == 1
    row = done.out.splitlines()[1].split()
    assert row[:3] == ["4", "8", "3"], "three of the warm-up failed"
    assert "3 failed: 400: " in done.err


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_tells_what_was_measured(there: Served, provider: Provider, name: signal.Signals) -> None:
    """The first level stands whole, the second as far as it came; the provider's work is stopped."""
    provider.seen.clear()
    process = subprocess.Popen(
        command("long", "--streams", "1,2", "--rounds", "1", "--tokens", "50", "--json", "--url", there.url),
        env=environment(there.folder / "home"), cwd=there.folder, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    patiently(lambda: len(provider.seen) == 2 + 4)
    process.send_signal(name)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    told = json.loads(out)
    assert told["stopped"] is True
    assert [(level["stopped"], level["answered"]) for level in told["levels"]] == [(False, 1), (True, 0)]
    assert told["levels"][0]["tokens"] == 50
    assert told["cost_nanos"] > 50 * ANSWER
    patiently(there.idle)


def test_seconds_end_a_level(bench: Bench) -> None:
    """A slow model is measured for as long as one has time for; a chat that has begun is not cut off."""
    done = bench("slow", "--streams", "2", "--rounds", "10000", "--seconds", "0.5", "--tokens", "2", "--json", "--yes")
    assert done.code == 0, done.err
    assert 2 <= done.json["levels"][0]["answered"] < 2000


# --- a server of its own -----------------------------------------------------------------------------------------


@pytest.fixture
def alone(tmp_path: Path, provider: Provider) -> Path:
    """A folder with a configuration that nobody serves."""
    model = {"name": "once", "engine": "openai", "base_url": provider.url, "model": "slow:7"}
    config = {"models": [model], "prices": [priced("once")], "port": free_port()}
    (tmp_path / "interlace.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def test_where_none_runs_one_is_started_and_ended(alone: Path) -> None:
    """One command is enough, and nothing of it is left running; a server that is named is never replaced by another."""
    run = {"env": environment(alone / "home"), "cwd": alone, "capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run(command("once", "--streams", "1", "--rounds", "1", "--json"), check=False, **run)
    assert done.returncode == 0, done.stderr
    assert "No server runs: starting one" in done.stderr
    assert json.loads(done.stdout)["levels"][0]["tokens"] == 7
    assert not _servers(alone)
    done = subprocess.run(command("once", "--url", "http://127.0.0.1:1"), check=False, **run)
    assert done.returncode == 1
    assert "No server answers at http://127.0.0.1:1" in done.stderr


def test_over_tls(alone: Path) -> None:
    """The configured certificate is believed, whatever name it is for, and chats go over it like everything else."""
    files, config = pair(alone / "tls"), alone / "interlace.yaml"
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "tls": files.settings}))
    done = subprocess.run(
        command("once", "--streams", "2", "--rounds", "1", "--json"), env=environment(alone / "home"), cwd=alone,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["url"].startswith("https://")
    assert json.loads(done.stdout)["levels"][0]["tokens"] == 14


def test_its_server_dies_with_it(alone: Path) -> None:
    """Killed without a chance to clean up, the command must not leave a server behind that serves on."""
    process = subprocess.Popen(
        command("once", "--rounds", "10000", "--tokens", "2", "--yes"), env=environment(alone / "home"), cwd=alone,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    patiently(lambda: _servers(alone))
    process.kill()
    process.wait()
    patiently(lambda: not _servers(alone))


def _servers(folder: Path) -> list[int]:
    """The servers that were started for a measurement in that folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if "interlace.gateway.bench.own_server" in process.cmdline() and process.cwd() == str(folder):
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            pass
    return found


def test_a_server_that_cannot_start_says_why(alone: Path) -> None:
    """The reason is the server's own, not that nothing answers."""
    file = alone / "interlace.yaml"
    file.write_text(file.read_text().replace("engine: openai", "engine: openai\n  api_key: ${KEY_THAT_IS_NOT_SET}"))
    done = subprocess.run(
        command("once"), env=environment(alone / "home"), cwd=alone, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "could not be started" in done.stderr
    assert "KEY_THAT_IS_NOT_SET is not set" in done.stderr


# --- wrong use and pictures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("nope",), 1, "No model 'nope' is served; there is: "),
        (("slow", "--streams", "0"), 2, "from 1 to 1024"),
        (("slow", "--streams", "many"), 2, "no list of numbers"),
        (("slow", "--plot", "figures.png"), 2, "ends in .svg"),
        (("slow", "--plot", "nowhere/figures.svg"), 2, "no folder"),
    ],
)
def test_wrong_use(bench: Bench, provider: Provider, words: tuple[str, ...], code: int, reason: str) -> None:
    """It is told before anything is asked and paid for."""
    provider.seen.clear()
    done = bench(*words)
    assert (done.code, done.out) == (code, "")
    assert reason in done.err
    assert provider.seen == []


def test_a_model_of_embeddings_is_not_measured(tmp_path: Path, provider: Provider) -> None:
    """It answers no chats; each of a hundred would fail the same way."""
    model = {"name": "v", "engine": "openai", "base_url": provider.url, "model": "instant", "embeds": True}
    with served(tmp_path, [model]) as there:
        done = subprocess.run(
            command("v", "--url", there.url), env=environment(tmp_path / "home"), cwd=tmp_path,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert "v makes embeddings; interlace bench measures chats." in done.stderr


def test_the_picture_is_svg_with_every_figure(bench: Bench, tmp_path: Path) -> None:
    """A file that viewers open, with the numbers of the table in it."""
    file = tmp_path / "figures.svg"
    done = bench("slow", "--streams", "1,2", "--rounds", "1", "--json", "--plot", str(file))
    assert done.code == 0
    root = ET.parse(file).getroot()
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == "slow"
    for level in done.json["levels"]:
        assert f"{level['tokens_per_second']:,.1f}" in texts or f"{level['tokens_per_second']:,.0f}" in texts
    assert texts.count("2 streams") == 4


def test_pictures_of_nothing_and_of_odd_names() -> None:
    """A level without figures is left empty, and a name cannot break out of the file."""
    drawn = svg("<b>&\x1b", "", [Level(1)])
    assert next(iter(ET.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text"))).text == "<b>&"
    ET.fromstring(svg("m", "", []))
    assert bars([Level(1)]) == []
