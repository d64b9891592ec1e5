"""A finished checkpoint in service: by a running server at once, by the next one, in the place of an earlier one; names
that are taken are told before anything is trained. Nothing here trains: a tiny Llama stands for what a run has made."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors import safe_open

from interlace.config import AddedModel, ModelSettings, RouteSettings, Settings, load_settings, read_added_models
from interlace.errors import ConfigError, Conflict, InterlaceError
from interlace.gateway.adapter_placing import place_adapter
from interlace.gateway.added_models import with_added_models
from interlace.gateway.asking import Where
from interlace.gateway.model_placing import place_model
from interlace.models import (
    Added,
    change_added,
    change_added_models,
    copy_adapter,
    find_checkpoint,
    find_copy,
    pull,
    read_added,
    resolve,
)
from interlace.tuning.folder import RunFolder, TuningError
from interlace.tuning.placing import check_place, check_size, model_over, place_result
from interlace.tuning.settings import TuneSettings
from tests.support.adapters import random_adapter
from tests.support.billing import tenants
from tests.support.served import served
from tests.support.serving import environment, free_port
from tests.support.tiny import tiny_llama_safetensors, tiny_weights

RUN = TuneSettings(base="base", data="x", name="mine", method="full")
LORA = dataclasses.replace(RUN, method="lora")


def _made(home: Path, seed: int) -> RunFolder:
    """A run's folder with a result."""
    folder = RunFolder(home, "mine", "full")
    shutil.rmtree(folder.result, ignore_errors=True)
    tiny_llama_safetensors(folder.result, weights=tiny_weights(seed))
    (folder.result / "manifest.json").write_text(json.dumps({"seed": seed}))
    return folder


@pytest.mark.parametrize("path", ["../base", "link", "./work/../base"])
def test_the_served_model_is_known_by_any_path_to_its_base(
    tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is learnt over it would else be served by nobody, and the command would say that no model has the base."""
    tiny_llama_safetensors(tmp_path / "base")
    (tmp_path / "work" / "work").mkdir(parents=True)
    (tmp_path / "work" / "link").symlink_to(tmp_path / "base")
    monkeypatch.chdir(tmp_path if path.startswith("./") else tmp_path / "work")
    models = (ModelSettings("other", "smollm2"), ModelSettings("tiny", str(tmp_path / "base")))
    there = Settings(home=tmp_path / "home", models=models)
    assert model_over(resolve(path, tmp_path / "home"), LORA, there, _serverless(tmp_path)) == "tiny"


@pytest.mark.parametrize("kind", [{"method": "lora"}, {"method": "full"}, {"method": "full", "private": "blocks:1-1"},
                                  {"method": "full", "task": "classify"}], ids=str)  # fmt: skip
def test_what_is_made_of_an_organisations_own_weights_is_its_own(tmp_path: Path, kind: dict[str, str]) -> None:
    """Else anybody who can give the command could hand its weights, learnt a little more, to another organisation or
    to all. Where the same base is also served to all, that is the one it is made over."""
    tenants(tmp_path, {"org": "acme"}, {"org": "other"})
    base = pull(str(tiny_llama_safetensors(tmp_path / "base")), tmp_path / "home", name="agri")
    own, shared = ModelSettings("own", "agri", owner="acme"), ModelSettings("shared", "agri")
    where = _serverless(tmp_path)

    def over(owner: str, *models: ModelSettings) -> str | None:
        run = TuneSettings(base="agri", data="x", name="mine", owner=owner, **kind)
        return model_over(base, run, Settings(home=tmp_path / "home", models=models), where)

    assert over("acme", own) == "own"
    for owner in ("other", "everybody"):
        with pytest.raises(ConfigError, match="owner: own belongs to acme, and so do the weights of agri"):
            over(owner, own)
        assert over(owner, own, shared) == "shared"
    with pytest.raises(ConfigError, match="owner: There is no organisation 'nobody'"):
        over("nobody", own)


def test_an_adapter_over_a_model_that_was_added_is_measured(tmp_path: Path) -> None:
    """Its room is that of any model: the configuration's file does not have it."""
    home = tmp_path / "home"
    base = pull(str(tiny_llama_safetensors(tmp_path / "base")), home, name="agri")
    change_added_models(home, lambda entries: (*entries, AddedModel("agri", "agri")))
    known = with_added_models(Settings(home=home))
    assert model_over(base, LORA, known, _serverless(tmp_path)) == "agri"
    check_size(LORA, base.path, "agri", known)


def _chat(folder: Path, url: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "interlace", "chat", "mine", "--url", url, "--max-tokens", "4"]
    return subprocess.run(
        command, cwd=folder, env=environment(folder / "home"), input="the 1\n", capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip


def test_a_running_server_has_it_at_once_and_its_owner_alone(tmp_path: Path) -> None:
    """A full fine-tune is private as an adapter is: `interlace chat mine` answers, and to another organisation there is
    no such model. The same again changes nothing; another result takes its place where that is said, under another name
    in the store; what the next owner would get by a slip of the command is refused."""
    (other,) = tenants(tmp_path, {"org": "other"})
    base = tiny_llama_safetensors(tmp_path / "base")
    home = tmp_path / "home"
    config = [{"name": "tiny", "checkpoint": str(base), "cache_bytes": "2MiB", "threads": 1}]
    with served(tmp_path, config) as running:
        settings = Settings(home=home, models=(ModelSettings("tiny", str(base)),))
        where = Where(environment(home), url=running.url, config=tmp_path / "interlace.yaml")
        first = place_result(RUN, _made(home, 1), "tiny", settings, where, replace=False)
        assert (first.now, first.checkpoint, first.priced_as, first.earlier) == (True, "mine", "tiny", "")
        assert place_result(RUN, RunFolder(home, "mine", "full"), "tiny", settings, where, replace=False) == first
        said = _chat(tmp_path, running.url)
        assert said.returncode == 0, said.stderr
        body = {"model": "mine", "messages": [{"role": "user", "content": "x"}]}
        url = f"{running.url}/v1/chat/completions"
        refused = httpx.post(url, json=body, headers=other.headers, trust_env=False, timeout=60)
        assert refused.status_code == httpx.codes.NOT_FOUND
        again = _made(home, 2)
        with pytest.raises(TuningError, match=r"is in the store as mine-.*interlace models rm mine"):
            place_result(RUN, again, "tiny", settings, where, replace=False)
        for_all = dataclasses.replace(RUN, owner="everybody")
        with pytest.raises(TuningError, match=r"belongs to default \(org_.*\), not to everybody"):
            place_result(for_all, again, "tiny", settings, where, replace=True)
        second = place_result(RUN, again, "tiny", settings, where, replace=True)
        assert second.checkpoint.startswith("mine-")
        assert second.earlier == "mine"
        assert find_checkpoint("mine", home) is not None
        (entry,) = read_added_models(home)
        assert (entry.checkpoint, entry.like) == (second.checkpoint, "tiny")
        assert _chat(tmp_path, running.url).returncode == 0


def test_names_that_are_taken_are_told_before_training(tmp_path: Path) -> None:
    """By a model or a route of the configuration, by an added model, or by the checkpoint that a line of the
    configuration serves; a line that waits for just this checkpoint is filled, and says whose it is."""
    home = tmp_path / "home"
    where = _serverless(tmp_path)
    line = ModelSettings("mine", "mine", owner="acme")
    for settings, mend in (
        (Settings(home=home, models=(ModelSettings("mine", "other"),)), "Choose another name"),
        (Settings(home=home, routes=(RouteSettings("mine", ()),)), "has a route mine"),
    ):
        for fresh in (False, True):
            with pytest.raises(TuningError, match=mend):
                check_place(RUN, settings, "", where, done=False, fresh=fresh)
    lined = Settings(home=home, models=(line,))
    check_place(RUN, lined, "", where, done=False, fresh=False)
    for_all = dataclasses.replace(RUN, owner="everybody")
    with pytest.raises(TuningError, match=r"^owner: .* mine is acme's, not everybody's. Say there whose it is"):
        check_place(for_all, lined, "", where, done=False, fresh=False)
    made = place_result(RUN, _made(home, 1), "", lined, Where(environment(home)), replace=False)
    assert (made.lined, made.owner) == (True, "acme")
    (words,) = made.words(classifies=False, settings=lined, where=Where({}))
    assert "acme's, as the configuration says" in words
    assert read_added_models(home) == ()
    with pytest.raises(TuningError, match="checkpoints rm mine"):
        check_place(RUN, lined, "", where, done=False, fresh=True)
    check_place(RUN, lined, "", where, done=True, fresh=False)
    plain = Settings(home=home)
    pull(str(_made(home, 3).result), home, name="pulled")
    change_added_models(home, lambda entries: (*entries, AddedModel("mine", "pulled")))
    with pytest.raises(TuningError, match="interlace models rm mine"):
        check_place(for_all, plain, "", where, done=False, fresh=False)
    check_place(for_all, plain, "", where, done=False, fresh=True)
    with pytest.raises(TuningError, match=r"^owner: .*belongs to everybody, not to default \(org_"):
        check_place(RUN, plain, "", where, done=False, fresh=True)


def _config(folder: Path, **model: Any) -> dict[str, Any]:
    """Settings of a tiny Llama, whose weights are made at the first time."""
    base = folder / "base"
    if not base.exists():
        tiny_llama_safetensors(base)
    return {"name": "tiny", "checkpoint": str(base), "cache_bytes": "2MiB", "threads": 1, **model}


def _serverless(folder: Path) -> Where:
    """The home folder, which no server has, by the configuration of the last one."""
    variables = {**environment(folder / "home"), "INTERLACE_PORT": str(free_port())}
    config = folder / "interlace.yaml"
    return Where(variables, config=config if config.exists() else None)


def _told(
    run: TuneSettings,
    where: Where,
    words: str,
    model: str = "tiny",
    kind: type[InterlaceError] = TuningError,
    **said: bool,
) -> None:
    """The run is refused, with these words, before anything is trained; a `ConfigError` is a mistake in what was given,
    which ends with another exit code."""
    home = Path(where.env["INTERLACE_HOME"])
    with pytest.raises(kind, match=words):
        check_place(run, Settings(home=home), model, where, **({"done": False, "fresh": True} | said))


def test_an_adapter_stays_its_owners(tmp_path: Path) -> None:
    """What is learnt anew for one organisation would be served to all, under the owner of what was there before; and
    what it owns would be opened by a slip. Told before the training and after it, with a server and without."""
    tenants(tmp_path, {"org": "acme"})
    home = tmp_path / "home"
    for seed, name in enumerate(("one", "two")):
        random_adapter(tmp_path / name, seed)

    def refused(where: Where) -> None:
        before = read_added(home)
        for name, owner, words in (
            ("mine", "acme", r"tiny:mine .*belongs to everybody, not to acme \(org_.*interlace adapters rm tiny:mine"),
            (
                "theirs",
                "",
                r"tiny:theirs .*belongs to acme \(org_.*\), not to everybody.*interlace adapters rm tiny:theirs",
            ),
        ):
            run = dataclasses.replace(LORA, name=name, owner=owner or "everybody")
            _told(run, where, f"^owner: .*{words}")
            _told(run, where, f"^owner: .*{words}", done=True, fresh=False)
            for which, replace in (("one", False), ("one", True), ("two", True)):
                with pytest.raises(Conflict, match=words):
                    place_adapter(tmp_path / which, "tiny", name, owner, where, replace=replace)
        assert read_added(home) == before
        assert [path.name for path in home.glob("adapters/sha256-*")] == [f"sha256-{before[0].digest}"]

    with served(tmp_path, [_config(tmp_path)]) as running:
        where = Where(environment(home), url=running.url, config=tmp_path / "interlace.yaml")
        opened = place_adapter(tmp_path / "one", "tiny", "mine", "", where, replace=False)
        private = place_adapter(tmp_path / "one", "tiny", "theirs", "acme", where, replace=False)
        assert opened is not None
        assert private is not None
        assert (opened.owner, private.owner) == (None, "acme")
        refused(where)
        check_place(dataclasses.replace(LORA, name="theirs", owner="acme"), Settings(home=home), "tiny", where,
                    done=False, fresh=True)  # fmt: skip
    refused(_serverless(tmp_path))
    assert place_adapter(tmp_path / "two", "tiny", "theirs", "acme", _serverless(tmp_path), replace=True) is None
    assert {entry.name: entry.owner[:4] for entry in read_added(home)} == {"mine": "", "theirs": "org_"}


def test_an_adapter_that_would_not_be_served_is_told_before_training(tmp_path: Path) -> None:
    """Its name is the configuration's already, an earlier one's, or its base is another organisation's: the next start
    would leave it out, or nobody could ask it, after hours of training. At its end that is looked at again."""
    tenants(tmp_path, {"org": "acme"}, {"org": "default"})
    random_adapter(tmp_path / "one", 1)
    mine = {"name": "mine", "folder": str(tmp_path / "one")}
    route = {"name": "tiny:mine", "models": [{"model": "tiny"}]}
    for settings, words, kind in (
        ({"models": [_config(tmp_path, adapters=[mine])]}, "^name: .*has an adapter tiny:mine.*remove it", TuningError),
        ({"models": [_config(tmp_path)], "routes": [route]}, "^name: .*has a route tiny:mine.*remove it", TuningError),
        ({"models": [_config(tmp_path, owner="acme")]}, "^owner: .*belongs to acme.* of default .*Say --owner acme",
         ConfigError),
    ):  # fmt: skip
        (tmp_path / "interlace.yaml").write_text(json.dumps(settings))
        _told(LORA, _serverless(tmp_path), words, kind=kind)
        with pytest.raises(InterlaceError, match=words.partition(": ")[2]):
            place_adapter(tmp_path / "one", "tiny", "mine", "default", _serverless(tmp_path), replace=True)
        assert not list((tmp_path / "home").glob("adapters/sha256-*"))
    where = _serverless(tmp_path)
    for owner in ("acme", "everybody"):  # what is over a model is its owner's
        run = dataclasses.replace(LORA, owner=owner)
        check_place(run, Settings(home=tmp_path / "home"), "tiny", where, done=False, fresh=False)
    place_adapter(tmp_path / "one", "tiny", "mine", "acme", where, replace=False)
    _told(dataclasses.replace(LORA, owner="everybody"), where, r"^owner: .*tiny:mine .*belongs to acme \(org_")
    _told(dataclasses.replace(LORA, owner="acme"), where, "^name: .*interlace adapters rm tiny:mine", fresh=False)


LONG = "m" * 120

LIMITS: dict[str, tuple[TuneSettings, dict[str, Any], str]] = {
    "a public name": (
        dataclasses.replace(LORA, name="n" * 8), {"name": LONG},
        rf"^name: Callers would write {LONG}:nnnnnnnn, which has 129 characters, and .* 128\. Choose one of 7 ",
    ),
    "a model's name that leaves no room": (
        LORA, {"name": "m" * 128}, r"^name: .* has 133 characters.*\. Choose a shorter name for the model m+ in",
    ),
    "an adapter's size": (
        dataclasses.replace(LORA, rank=512), {"adapter_bytes": 1 << 20},
        r"^rank: an adapter of rank 512 over all-linear takes [0-9,]+ bytes of memory, over the 1,048,576 of",
    ),
    "a checkpoint's name": (
        dataclasses.replace(RUN, name="Mine"), {"name": "Mine", "checkpoint": "Mine"},
        "^name: Mine cannot name a checkpoint, which the configuration's model of that name waits for",
    ),
    "an owner's name": (
        dataclasses.replace(LORA, owner="o" * 128), {}, "^owner: There is no organisation 'o+'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", LIMITS)
def test_what_would_be_refused_at_the_end_is_told_before_training(tmp_path: Path, what: str) -> None:
    """All that putting it into service sets bounds to: else a person hears of it after hours. Lengths of licence and
    source, and what a name may be made of, are looked at as the settings are read."""
    run, model, words = LIMITS[what]
    (tmp_path / "interlace.yaml").write_text(json.dumps({"models": [_config(tmp_path, **model)]}))
    where = _serverless(tmp_path)
    served = load_settings(where.config, where.env, need_keys=False)
    name = served.models[0].name

    def look() -> None:
        check_place(run, served, name, where, done=False, fresh=False)
        check_size(run, tmp_path / "base", name, served)

    with pytest.raises(ConfigError, match=words):
        look()


@pytest.mark.parametrize("characters", [8, 7])
def test_the_longest_name_is_the_same_before_and_after(tmp_path: Path, characters: int) -> None:
    """What is let through to the training is let into service at its end, and nothing else, with a server or without:
    one that was too long would stand in the list, and no request, price or key could name it."""
    random_adapter(tmp_path / "one", 1)
    run = dataclasses.replace(LORA, name="n" * characters, owner="everybody")
    model = _config(tmp_path, name=LONG)

    said = [] if characters == 7 else ["a name can have 128"] * 2

    def tried(where: Where) -> list[str]:
        refused = []
        for act in (
            lambda: check_place(run, Settings(home=tmp_path / "home"), LONG, where, done=False, fresh=True),
            lambda: place_adapter(tmp_path / "one", LONG, run.name, "", where, replace=True),
        ):
            try:
                act()
            except InterlaceError as error:
                refused += re.findall("a name can have 128", error.message) or [error.message]
        return refused

    with served(tmp_path, [model]) as running:
        where = Where(environment(tmp_path / "home"), url=running.url, config=tmp_path / "interlace.yaml")
        assert tried(where) == said
    assert tried(_serverless(tmp_path)) == said
    assert len(read_added(tmp_path / "home")) == (characters == 7)


def test_an_adapter_that_just_fits_is_let_into_service(tmp_path: Path) -> None:
    """The bound is of its numbers in memory; that its file has a header, too, must not matter at the end."""
    adapter, home = tmp_path / "one", tmp_path / "home"
    random_adapter(adapter, 1)
    with safe_open(adapter / "adapter_model.safetensors", "numpy") as file:
        needed = sum(4 * math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 - it cannot be gone through
    assert (adapter / "adapter_model.safetensors").stat().st_size > needed
    digest, _ = copy_adapter(adapter, home, needed)
    assert find_copy(home, digest).is_dir()


def test_what_a_server_has_and_who_is_not_there_is_told_before_training(tmp_path: Path) -> None:
    """An organisation that nobody made, by a slip of the command, and names that the running server's configuration has
    and the file no more; without a server the ledger says who there is."""
    tenants(tmp_path, {"org": "acme"}, {"org": "default"})
    random_adapter(tmp_path / "one", 1)
    mine = {"name": "mine", "folder": str(tmp_path / "one")}
    nobody = r"^owner: There is no organisation 'acne'\. Did you mean 'acme'\?.* interlace orgs create"

    def refused(where: Where) -> None:
        for run in (RUN, LORA):
            for model in ("tiny", ""):
                _told(dataclasses.replace(run, owner="acne", name="other"), where, nobody, model, kind=ConfigError)

    with served(tmp_path, [_config(tmp_path, adapters=[mine])]) as running:
        where = Where(environment(tmp_path / "home"), url=running.url, config=tmp_path / "interlace.yaml")
        refused(where)
        (tmp_path / "interlace.yaml").write_text(json.dumps({"models": [_config(tmp_path)]}))
        _told(LORA, where, "^name: The server's configuration has an adapter tiny:mine.*interlace reload")
        _told(dataclasses.replace(RUN, name="tiny"), where, "^name: The server's configuration has a model tiny.*")
    refused(_serverless(tmp_path))


@pytest.mark.parametrize("other", ["one", "two"])
def test_two_commands_at_once_put_one_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    """Another puts its own under the same name after this one has looked: with two in the list, nobody would know which
    is served. The same is the same; another's is not replaced unasked, and keeps its adapter, too."""
    home = tmp_path / "home"
    where = Where(environment(home), url=f"http://127.0.0.1:{free_port()}", config=tmp_path / "interlace.yaml")
    base = tiny_llama_safetensors(tmp_path / "base")
    (tmp_path / "interlace.yaml").write_text(json.dumps({"models": [{"name": "tiny", "checkpoint": str(base)}]}))
    digests = {}
    for seed, name in enumerate(("one", "two")):
        random_adapter(tmp_path / name, seed)
        digests[name], _ = copy_adapter(tmp_path / name, home, 1 << 20)
    models, adapters = (AddedModel("mine", other),), (Added("tiny", "mine", "", digests[other]),)

    def after_another(home: Path, change: Any) -> None:
        change_added_models(home, lambda _: models)
        change_added_models(home, change)

    def after_another_adapter(home: Path, change: Any) -> None:
        change_added(home, lambda _: adapters)
        change_added(home, change)

    monkeypatch.setattr("interlace.gateway.model_placing.change_added_models", after_another)
    monkeypatch.setattr("interlace.gateway.adapter_placing.change_added", after_another_adapter)
    refused = contextlib.nullcontext() if other == "one" else pytest.raises(Conflict, match="already")
    with refused:
        place_model("mine", "one", "", "", where, replace=False)
    with refused:
        place_adapter(tmp_path / "one", "tiny", "mine", "", where, replace=False)
    assert read_added_models(home) == models
    assert read_added(home) == adapters
