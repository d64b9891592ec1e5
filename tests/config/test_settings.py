"""interlace.yaml and environment: what is read, in which order, and what is said of every mistake."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interlace.config import DEFAULT_MODEL, LedgerSettings, RedisSettings, Settings, check_config, load_settings
from interlace.errors import ConfigError
from interlace.gateway.commands import redis_faults

MODEL = "models:\n  - {name: a, checkpoint: b"
FAR = "models:\n  - {name: a, engine: openai, base_url: http://x, model: m"

SHARED = "ledger: {url: postgresql://i@db/i}\n"
ADAPTED = MODEL + ", adapters: [{name: x, folder: f"
ROUTE = FAR + "}\nroutes:\n  - {name: r, models: [{model: a"

# file → line, setting and words of the one problem in it
MISTAKES: dict[str, tuple[str, int, str, str]] = {
    "unknown setting": ("host: a\nprot: 80\n", 2, "prot", "Did you mean `port`?"),
    "unknown in a group": ("log:\n  levle: info\n", 2, "log.levle", "Did you mean `level`?"),
    "given twice": ("port: 1\nport: 2\n", 2, "port", "given twice"),
    "a list for a number": ("port: [1]\n", 1, "port", "a whole number"),
    "nothing for a number": ("port:\n", 1, "port", "a whole number"),
    "a word for a number": ("port: eighty\n", 1, "port", "not a whole number but 'eighty'"),
    "endless digits": (f"port: {'9' * 6000}\n", 1, "port", "not a whole number"),
    "too much": ("port: 70000\n", 1, "port", "65535 or less"),
    "too little": (MODEL + ", max_sequences: 0}\n", 2, "models[0].max_sequences", "1 or more"),
    "not finite": ("drain_seconds: 1e999\n", 1, "drain_seconds", "finite"),
    "a number for text": ("host: 127\n", 1, "host", 'Put it in quotes: "127"'),
    "no size": (MODEL + ", cache_bytes: 12 parsecs}\n", 2, "models[0].cache_bytes", "512MiB"),
    "no choice": (MODEL + ", precision: fp16}\n", 2, "models[0].precision", "Did you mean `bf16`?"),
    "neither true nor false": ("log: {prompts: maybe}\n", 1, "log.prompts", "true or false"),
    "no mapping": ("log: loud\n", 1, "log", "not a mapping"),
    "a default over the largest": ("plans:\n  - {name: a, default_max_tokens: 9, largest_max_tokens: 8}\n", 2, "plans",
                                   "more than largest_max_tokens 8"),
    "a route to nobody": (FAR + "}\nroutes:\n  - {name: r, models: []}\n", 4, "routes[0].models", "is empty"),
    "a route without models": (FAR + "}\nroutes:\n  - {name: r}\n", 4, "routes[0].models", "is missing"),
    "a route to who is not there": (ROUTE.replace("model: a", "model: aa") + "}]}\n", 4, "routes[0].models[0].model",
                                    "Did you mean `a`?"),
    "a fallback that is not there": (ROUTE + "}],\n     fallbacks: [{model: zzz}]}\n", 5,
                                     "routes[0].fallbacks[0].model", "Served are: a"),
    "a shadow that is not there": (ROUTE + "}],\n     shadow: {model: zzz, percent: 5}}\n", 5, "routes[0].shadow.model",
                                   "not among the models"),
    "a canary that is nobody": (ROUTE + "}],\n     canary: {percent: 5}}\n", 5, "routes[0].canary", "names no model"),
    "a route called as a model": (ROUTE.replace("name: r", "name: a") + "}]}\n", 4, "routes[0].name",
                                  "is a model's name too"),
    "an adapter with a colon": (ADAPTED.replace("x", "x:y") + "}]}\n", 2, "models[0].adapters[0].name",
                                "cannot be an adapter's name"),
    "an adapter called as a model": (ADAPTED + "}]}\n  - {name: 'a:x', checkpoint: b}\n", 2,
                                     "models[0].adapters[0].name", "a:x is a model's name too"),
    "a route through two walls": (
        ADAPTED + ", owner: o}, {name: y, folder: f, owner: p}]}\nroutes:\n"
        "  - {name: r, models: [{model: 'a:x'}], fallbacks: [{model: 'a:y'}]}\n", 4, "routes[0].name", "of o and p"),
    "a price of no adapter": (ADAPTED + "}]}\nprices:\n  - {model: 'a:y', since: 2026-01-01, "
                              "usd_per_million: {prompt: '1'}}\n", 4, "prices[0].model", "Did you mean `a:x`?"),
    "a star of no model": (ADAPTED + "}]}\nplans:\n  - {name: p, models: [a, 'a:x', 'a:*', 'zzz:*']}\n", 4,
                           "plans[0].models[3]", "not among the models"),
    "a route without weight": (ROUTE + ", weight: 0}]}\n", 4, "routes[0].models", "no weight above zero"),
    "two routes of a name": (ROUTE + "}]}\n  - {name: r, models: [{model: a}]}\n", 5, "routes", "given twice"),
    "a route with a strange name": (ROUTE.replace("name: r", "name: 'r r'") + "}]}\n", 4, "routes", "a route's name"),
    "no such need": (ROUTE + ", when: {needs: [tool]}}]}\n", 4, "routes[0].models[0].when.needs[0]",
                     "Did you mean `tools`?"),
    "no hours": (ROUTE + ", when: {hours: '8-18'}}]}\n", 4, "routes[0].models[0].when.hours", "08:00-18:00"),
    "no refusal": (ROUTE + "}],\n     open_first: {refusals: ['(']}}\n", 5, "routes[0].open_first.refusals[0]",
                   "not a regular expression"),
    "a slip in a plan's name": (
        ROUTE + ", when: {plans: [god]}}]}\nplans:\n  - {name: gold}\n", 4, "routes[0].models[0].when.plans[0]",
        "Did you mean `gold`?",
    ),
    "no list": ("models: {name: a}\n", 1, "models", "Start each item with `- `"),
    "a list as the file": ("- a\n", 1, "the file", "not a mapping"),
    "a model without checkpoint": ("models:\n  - name: a\n", 2, "models[0].checkpoint", "is missing"),
    "a remote model without address": (FAR.replace("base_url: http://x, ", "") + "}\n", 2, "models[0].base_url",
                                       "is missing"),
    "a remote model without name": (FAR.replace(", model: m", "") + "}\n", 2, "models[0].model", "is missing"),
    "an address for a local one": (MODEL + ",\n    base_url: http://x}\n", 3, "models[0].base_url",
                                   "write `engine: openai`"),
    "a cache for a remote one": (FAR + ",\n    cache_bytes: 1GiB}\n", 3, "models[0].cache_bytes",
                                 "is no setting of engine openai but of local"),
    "no engine": (MODEL + ", engine: opnai}\n", 2, "models[0].engine", "Did you mean `openai`?"),
    "an address without scheme": (FAR.replace("http://x", "api.openai.com") + "}\n", 2, "models[0].base_url",
                                  "begins with http"),
    "an address of a file": (FAR.replace("http://x", "file:///etc/passwd") + "}\n", 2, "models[0].base_url",
                             "begins with http"),
    "an address with a password": (FAR.replace("http://x", "http://me:sesame@x") + "}\n", 2, "models[0].base_url",
                                   "holds a user name or password"),
    "an address with a query": (FAR.replace("http://x", "'http://x?a=b'") + "}\n", 2, "models[0].base_url", "a query"),
    "an address with a bad port": (FAR.replace("http://x", "http://x:99999") + "}\n", 2, "models[0].base_url",
                                   "begins with http"),
    "a key in the file": (FAR + ", api_key: sk-sesame}\n", 2, "models[0].api_key", "api_key: ${OPENAI_API_KEY}"),
    "a number as a key": (FAR + ", api_key: 1234567}\n", 2, "models[0].api_key", "is not written as ${NAME}"),
    "a key beside a name": (FAR + ", api_key: '${A}sk-sesame'}\n", 2, "models[0].api_key", "not written as"),
    "a variable that is not there": (FAR + ", api_key: '${NOBODY_SET_THIS}'}\n", 2, "models[0].api_key",
                                     "NOBODY_SET_THIS is not set"),
    "another engine's address": (FAR.replace("openai", "anthropic") + ", extensions: true}\n", 2,
                                 "models[0].extensions", "of engine anthropic but of openai, azure, mistral"),
    "embeddings where there are none": (FAR.replace("openai", "anthropic") + ", embeds: true}\n", 2, "models[0].embeds",
                                        "of engine anthropic but of openai, azure, vertex"),
    "dimensions where there are none": (FAR.replace("openai", "bedrock") + ", dimensions: 2}\n", 2,
                                        "models[0].dimensions", "of engine bedrock but of openai, azure, vertex"),
    "a secret in the file": (FAR.replace("openai", "azure") + ", entra_secret: sesame}\n", 2, "models[0].entra_secret",
                             "entra_secret: ${"),
    "a version where there is none": (FAR + ", api_version: '2024-10-21'}\n", 2, "models[0].api_version",
                                      "write `engine: azure`"),
    "an azure without address": (FAR.replace("base_url: http://x, ", "").replace("openai", "azure") + "}\n", 2,
                                 "models[0].base_url", "is missing"),
    "no patience": (FAR + ", total_seconds: 0}\n", 2, "models[0].total_seconds", "too little"),
    "a name twice": ("models:\n  - {name: a, checkpoint: b}\n  - {name: a, checkpoint: c}\n", 3, "models", "twice"),
    "a name with a blank": ("models:\n  - {name: 'a b', checkpoint: b}\n", 2, "models", "cannot be a model's name"),
    "no pattern": ("guards:\n  deny: ['(']\n", 2, "guards.deny[0]", "not a regular expression"),
    "a pattern of nothing": ("guards:\n  deny: ['a*']\n", 2, "guards.deny[0]", "refuse everything"),
    "no word for secrets": ("guards:\n  secrets_input: {card: no}\n", 2, "guards.secrets_input.card",
                            "is 'no'. Use one of off, mask, refuse"),
    "an empty path": ("home: ''\n", 1, "home", "is empty"),
    "a NUL in a path": ('home: "a\\0b"\n', 1, "home", "NUL"),
    "nobody's home": ("home: ~nobody-of-this-name/x\n", 1, "home", "Write the whole path"),
    "nobody's checkpoint": ("models:\n  - {name: a, checkpoint: ~nobody-of-this-name/x}\n", 2,
                            "models[0].checkpoint", "Write the whole path"),
    "a list as a key": ("? [a]\n: b\n", 1, "a key that is no text", "no setting"),
    "code": ("host: !!python/object/apply:os.system ['true']\n", 1, "host", "is not text"),
    "itself": ("models: &a\n  - *a\n", 1, "models[0]", "not a mapping"),
    "no YAML": ("host: a\nmodels: [\n", 3, "the file", "not YAML"),
    "two documents": ("port: 1\n---\nport: 2\n", 2, "the file", "another document"),
    "too deep": ("models: " + "[" * 5000, 0, "the file", "too deeply"),
    "a NUL": ("port: 80\0\n", 0, "the file", "not YAML"),
}  # fmt: skip


def test_a_precision_for_all_models_on_this_machine(tmp_path: Path) -> None:
    """`--precision` beats what the file says of each local model, leaves remote ones alone, and must be one."""
    file = tmp_path / "interlace.yaml"
    remote = "- {name: far, engine: ollama, model: m}"
    file.write_text(f"models:\n- {{name: a, checkpoint: a, precision: int8}}\n- {{name: b, checkpoint: b}}\n{remote}\n")
    models = load_settings(file, {}, {"precision": "bf16"}).models
    assert [model.precision for model in models] == ["bf16", "bf16", "file"]
    assert [model.precision for model in load_settings(None, {}, {"precision": "auto"}).models] == ["auto"]
    assert [model.precision for model in load_settings(file, {}, {"precision": None}).models] == [
        "int8",
        "file",
        "file",
    ]
    with pytest.raises(ConfigError, match=r"--precision.*Did you mean `bf16`") as caught:
        load_settings(file, {}, {"precision": "fp16"})
    assert caught.value.message.count("\n") == 0


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_line_and_mend(tmp_path: Path, mistake: str) -> None:
    """One problem, at its line, in words that name the setting and the way out; `load_settings` says the same."""
    text, line, where, words = MISTAKES[mistake]
    file = tmp_path / "interlace.yaml"
    file.write_text(text, encoding="utf-8")
    (problem,) = check_config(file, {})
    assert (problem.file, problem.line, problem.where) == (str(file), line, where)
    assert words in f"{problem.problem}. {problem.mend}"
    assert len(str(problem)) < 1000
    assert not {"sesame", "1234567"} & set(re.split(r"\W", str(problem)))  # a key is not shown
    with pytest.raises(ConfigError) as caught:
        load_settings(file, {})
    assert caught.value.message == str(problem)


def test_an_empty_item_misses_all_that_a_model_needs(tmp_path: Path) -> None:
    """A `-` without anything behind it is told like a model without name and checkpoint."""
    file = tmp_path / "interlace.yaml"
    file.write_text("models:\n  -\n")
    assert [(p.line, p.where) for p in check_config(file, {})] == [(2, "models[0].name"), (2, "models[0].checkpoint")]


@pytest.mark.parametrize("kind", ["missing", "a folder", "not UTF-8"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, kind: str) -> None:
    """There is no line to name, but the file and the reason."""
    file = tmp_path / "interlace.yaml"
    if kind == "a folder":
        file.mkdir()
    elif kind == "not UTF-8":
        file.write_bytes(b"host: \xe9\n")
    (problem,) = check_config(file, {})
    assert (problem.file, problem.line) == (str(file), 0)
    assert "cannot be read" in problem.problem


PIECES = (
    "models:", "guards:", "deny:", "log:", "home:", "port:", "name: a", "checkpoint: ~", "\n", "\n  ", " ", "- ", "\t",
    "{", "}", "[", "]", ",", "&a ", "*a", "!!str ", "!", "? ", "~", "| ", "> ", "1", "'", '"', "#", "---\n", "\x00",
)  # fmt: skip


@given(text=st.text() | st.lists(st.sampled_from(PIECES)).map("".join))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_good_or_a_list_of_problems(tmp_path: Path, text: str) -> None:
    """Whatever lies in the file: settings or problems, never anything else; and both ways to ask agree."""
    file = tmp_path / "interlace.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    problems = check_config(file, {})
    try:
        load_settings(file, {})
    except ConfigError:
        assert problems
    else:
        assert not problems


def test_the_command_line_beats_the_environment_beats_the_file(tmp_path: Path) -> None:
    """Each later one overrides, and what none says is the default."""
    file = tmp_path / "interlace.yaml"
    file.write_text("port: 1\nhost: file\ndrain_seconds: 3\nlimits: {queue: 5}\n")
    env = {"INTERLACE_PORT": "2", "INTERLACE_HOST": "environment", "INTERLACE_QUEUE": "6"}
    read = load_settings(file, env, {"port": 3, "host": None})
    assert (read.port, read.host, read.drain_seconds, read.limits.queue) == (3, "environment", 3.0, 6)
    assert [(model.name, model.checkpoint) for model in read.models] == [(DEFAULT_MODEL, DEFAULT_MODEL)]


@pytest.mark.parametrize(("name", "text"), [("INTERLACE_PORT", "x"), ("INTERLACE_LOG_LEVEL", "loud")])
def test_a_mistake_in_the_environment_names_the_variable(name: str, text: str) -> None:
    """There is no file and no line, so the variable is named."""
    (problem,) = check_config(None, {name: text})
    assert (problem.file, problem.line) == (name, 0)


def test_relative_paths_in_the_file_begin_at_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the command runs, `./` means beside the file; a path in the environment begins where one stands."""
    (tmp_path / "conf").mkdir()
    file = tmp_path / "conf" / "interlace.yaml"
    file.write_text("home: data\nmodels:\n  - {name: a, checkpoint: ./x.gguf}\n")
    monkeypatch.chdir(tmp_path)
    read = load_settings(Path("conf/interlace.yaml"), {})
    assert (read.home, read.models[0].checkpoint) == (tmp_path / "conf/data", str(tmp_path / "conf/x.gguf"))
    assert load_settings(None, {"INTERLACE_HOME": "here"}).home == tmp_path / "here"


def test_without_a_home_folder_one_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container whose user nobody knows there is no `~`: an error in words, unless a home is set."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", _nobody)
    with pytest.raises(ConfigError, match="INTERLACE_HOME"):
        load_settings(None, {})
    assert load_settings(None, {"INTERLACE_HOME": "/data"}).home == Path("/data")


def _nobody(uid: int) -> Any:
    raise KeyError(uid)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (SHARED + "redis: {url: '${REDIS_URL}'}", []),
        ("redis: {url: '${REDIS_URL}'}", ["is for several machines, and a ledger in SQLite is one machine's"]),
        (SHARED + "redis: {url: '${NONE}'}", ["the environment variable NONE is not set"]),
        (SHARED + "redis: {url: 'redis://:hunter2@r'}", ["is not written as ${NAME}"]),
    ],
)
def test_redis_is_for_several_machines_and_its_address_stays_in_the_environment(
    tmp_path: Path, text: str, found: list[str]
) -> None:
    """Its address may hold a password; and where one machine is all there is, whoever sets it up has misread us."""
    (tmp_path / "interlace.yaml").write_text(text)
    problems = check_config(tmp_path / "interlace.yaml", {"REDIS_URL": "redis://:hunter2@r"})
    assert [(one.where, one.problem) for one in problems] == [("redis.url", problem) for problem in found]
    assert "hunter2" not in " ".join(map(str, problems))


def test_an_address_that_is_none_is_found_before_the_start() -> None:
    """Else every worker would end as soon as it begins; and what it might be is not shown."""
    read = Settings(ledger=LedgerSettings(url="postgresql://i@db/i"), redis=RedisSettings(url="${REDIS_URL}"))
    (fault,) = redis_faults(read, {"REDIS_URL": "hunter2@r"})
    assert (fault[0], "hunter2" in str(fault)) == ("redis.url", False)
    assert not list(redis_faults(read, {"REDIS_URL": "rediss://:hunter2@r:6380/1"}))


def test_a_key_stays_in_the_environment(tmp_path: Path) -> None:
    """Settings hold the variable's name; only those who will need the key insist that it is there."""
    file = tmp_path / "interlace.yaml"
    file.write_text(FAR.replace("http://x", "https://x.org/v1/") + ", api_key: '${FAR_KEY}'}\n")
    read = load_settings(file, {"FAR_KEY": "sk-sesame"})
    assert (read.models[0].api_key, read.models[0].base_url) == ("${FAR_KEY}", "https://x.org/v1")
    assert "sesame" not in repr(read)
    assert load_settings(file, {}, need_keys=False) == read
    for env in ({}, {"FAR_KEY": " "}):
        with pytest.raises(ConfigError, match="FAR_KEY is not set"):
            load_settings(file, env)


def test_settings_cannot_change_after_the_load() -> None:
    """What was read once holds until the next load."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().port = 1  # type: ignore[misc]


def test_off_needs_no_quotes_where_it_is_a_choice(tmp_path: Path) -> None:
    """YAML reads a bare `off` as false; where a setting has that word among its choices, it is the word."""
    file = tmp_path / "interlace.yaml"
    file.write_text("guards:\n  secrets_output: {card: off, api_key: mask}\n")
    secrets = load_settings(file, {}).guards.secrets_output
    assert (secrets.card, secrets.api_key, secrets.private_key) == ("off", "mask", "off")
