"""Reloads that take their time: what happens beside them, and what is left when they come to nothing."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from interlace.config import AdapterSettings, Faults, ModelSettings, Settings
from interlace.engines.types import Engine
from interlace.errors import CheckpointError, ConfigError, EngineFailed, InvalidRequest
from interlace.gateway.app import State, make_app
from interlace.gateway.reloading import Engines, Load, Loads, Reloader, Source
from interlace.gateway.serve import make_pipeline
from interlace.ledger import Registry
from tests.support.prices import free
from tests.support.scripted_engine import ScriptedEngine


@dataclass
class Adaptable(ScriptedEngine):
    """One that can be told of adapters."""

    folders: dict[str, str] = field(default_factory=dict)

    def register_adapter(self, name: str, folder: Path) -> None:
        """Remember it."""
        self.folders[name] = str(folder)

    def remove_adapter(self, name: str) -> None:
        """Forget it."""
        del self.folders[name]


@dataclass
class Bench:
    """A reloader over engines that load for as long as a test wants, and a file that is a list of models' names."""

    home: Path
    names: list[str] = field(default_factory=lambda: ["a"])
    built: dict[str, list[ScriptedEngine]] = field(default_factory=dict)
    state: str = "ready"  # of an engine when it is built
    adapters: tuple[AdapterSettings, ...] = ()  # of every model
    loads: Loads = field(init=False)
    reloader: Reloader = field(init=False)

    def settings(self) -> Settings:
        """As the file is now; a name after `=` is another checkpoint."""
        pairs = [(name.partition("=")[0], name.partition("=")[2] or "c") for name in self.names]
        models = tuple(ModelSettings(name, checkpoint, adapters=self.adapters) for name, checkpoint in pairs)
        return Settings(home=self.home, models=models, prices=free(name for name, _ in pairs))

    def read(self, faults: Faults) -> Settings:
        """The file; the name `wrong` makes it one."""
        if "wrong" in self.names:
            raise ConfigError("interlace.yaml:7: models: is wrong. Mend it")
        assert not list(faults(self.settings()))
        return self.settings()

    def complete(self, model: ModelSettings, home: Path) -> ModelSettings:
        """Fetch; `nowhere` cannot be."""
        if model.checkpoint == "nowhere":
            raise CheckpointError("there is none")
        return dataclasses.replace(model, checkpoint=f"fetched {model.checkpoint}")

    def build(self, model: ModelSettings, home: Path) -> ScriptedEngine:
        """An engine, remembered."""
        if model.name == "keyless":
            raise ConfigError("its key is not set")
        engine = Adaptable(state=self.state)
        self.built.setdefault(model.name, []).append(engine)
        return engine

    def engine(self, name: str) -> Engine:
        """The one that answers now."""
        return self.loads.current.engines[name]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncGenerator[Bench]:
    """A bench with one model `a`."""
    bench, state = Bench(tmp_path), State()
    first = bench.settings()
    with closing(Registry.open(first, {})) as registry:

        def make(read: Settings, settings: Settings, engines: Engines, before: Load | None = None) -> Load:
            pipeline = make_pipeline(registry, engines, settings, before.pipeline if before else None)
            return Load(read, settings, engines, pipeline, make_app(settings, pipeline, state))

        bench.loads = Loads(make(first, first, {m.name: bench.build(m, tmp_path) for m in first.models}))
        source = Source(first, bench.read, bench.complete)
        bench.reloader = Reloader(registry, bench.loads, source, bench.build, make, lambda _: None)
        async with aclosing(_Closing(bench)):
            yield bench


@dataclass
class _Closing:
    bench: Bench

    async def aclose(self) -> None:
        await self.bench.reloader.close()
        await self.bench.loads.close()


async def _until(condition: object) -> None:
    async with asyncio.timeout(10):
        while not condition():  # type: ignore[operator] # a function
            await asyncio.sleep(0.005)


async def test_a_second_reload_waits_for_the_first_and_reads_what_is_there_then(bench: Bench) -> None:
    """Did it overtake, the older file would win in the end; did each of many wait, a flood of signals would be worked
    off one by one."""
    bench.names, bench.state = ["a", "slow"], "loading"
    first = asyncio.create_task(bench.reloader.reload("first"))
    await _until(lambda: "slow" in bench.built)
    bench.names, bench.state = ["a", "b"], "ready"
    others = [asyncio.create_task(bench.reloader.reload(f"other {i}")) for i in range(5)]
    await asyncio.sleep(0.05)
    assert "b" not in bench.built, "two reloads at once"
    assert list(bench.loads.current.engines) == ["a"]
    bench.built["slow"][0].state = "ready"
    assert (await first).added == ["slow"]
    done = await asyncio.gather(*others)
    assert [one.added for one in done] == [["b"]] * 5
    assert [one.removed for one in done] == [["slow"]] * 5
    assert len(bench.built["b"]) == 1
    assert list(bench.loads.current.engines) == ["a", "b"]
    await _until(lambda: bench.built["slow"][0].state == "closed")
    assert bench.built["a"] == [bench.engine("a")]


async def test_an_engine_is_open_as_long_as_any_load_that_has_it(bench: Bench) -> None:
    """Requests of three loads share an engine: closed with the first of them, it would fail the others; never closed,
    its memory would be lost."""
    bench.names = ["a", "b"]
    await bench.reloader.reload("test")
    with bench.loads.held() as older:
        await _reloaded(bench, ["a", "b", "c"])
        with bench.loads.held():
            await _reloaded(bench, ["a"])
            assert [bench.built[name][0].state for name in "abc"] == ["ready"] * 3
        await _until(lambda: bench.built["c"][0].state == "closed")
        assert older.engines["b"].health().state == "ready"
    await _until(lambda: bench.built["b"][0].state == "closed")
    assert bench.engine("a").health().state == "ready"


async def _reloaded(bench: Bench, names: list[str]) -> None:
    bench.names = names
    await bench.reloader.reload("test")


@pytest.mark.parametrize(
    ("names", "code", "words"),
    [
        (["a", "good", "wrong"], "invalid_configuration", "interlace.yaml:7: models: is wrong"),
        (["a", "good", "x=nowhere"], "model_not_started", "The model x could not be started.*there is none"),
        (["a", "good", "keyless"], "invalid_configuration", "its key is not set"),
        (["a=other", "good", "keyless"], "invalid_configuration", "its key is not set"),
    ],
)
async def test_whatever_cannot_be_had_changes_nothing(names: list[str], code: str, words: str, bench: Bench) -> None:
    """Were what could be had swapped in, half a configuration would run; were it not closed, its memory would be
    lost."""
    before, bench.names = bench.loads.current, names
    with pytest.raises(InvalidRequest, match=words) as caught:
        await bench.reloader.reload("test")
    assert caught.value.code == code
    assert bench.loads.current is before
    assert bench.engine("a").health().state == "ready"
    for name, engines in bench.built.items():
        assert [engine.state for engine in engines] == (["ready"] if name == "a" else []) + ["closed"] * (
            len(engines) - (name == "a")
        )
    await _reloaded(bench, ["a", "good"])
    assert bench.engine("good").health().state == "ready"


async def test_a_model_that_fails_to_load_is_told_with_its_reason(bench: Bench) -> None:
    """Waiting for ever, or swapping it in, would both leave the operator with nothing."""
    bench.names, bench.state = ["a", "b"], "failed"
    with pytest.raises(InvalidRequest, match="The model b could not be started"):
        await bench.reloader.reload("test")
    assert bench.built["b"][0].state == "closed"


async def test_an_end_of_the_server_gives_up_what_loads(bench: Bench) -> None:
    """Were new engines left behind, their processes would outlive the server's drain."""
    bench.names, bench.state = ["a", "slow"], "loading"
    task = asyncio.create_task(bench.reloader.reload("test"))
    await _until(lambda: "slow" in bench.built)
    await bench.reloader.close()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.built["slow"][0].state == "closed"


async def test_a_bug_leaves_everything_as_it_is(bench: Bench) -> None:
    """A reload that breaks in a way nobody foresaw must not take the server with it, or the next reload."""
    good, bench.names = bench.complete, ["a", "b"]

    def broken(model: ModelSettings, home: Path) -> ModelSettings:
        raise EngineFailed("no")

    bench.reloader.source = dataclasses.replace(bench.reloader.source, complete=broken)
    with pytest.raises(EngineFailed):
        await bench.reloader.reload("test")
    assert list(bench.loads.current.engines) == ["a"]
    bench.reloader.source = dataclasses.replace(bench.reloader.source, complete=good)
    assert (await bench.reloader.reload("test")).added == ["b"]


async def test_models_as_they_were_fetched_are_kept(bench: Bench) -> None:
    """What was read is compared, not what it became by fetching: else every reload would load all weights again."""
    await _reloaded(bench, ["a", "b"])
    assert (await bench.reloader.reload("test")).kept == ["a", "b"]
    assert bench.loads.current.settings.models[1].checkpoint == "fetched c"
    assert {name: len(engines) for name, engines in bench.built.items()} == {"a": 1, "b": 1}
    bench.names = ["b=other", "a"]
    done = await bench.reloader.reload("test")
    assert (done.replaced, done.kept) == (["b"], ["a"])
    assert list(bench.loads.current.engines) == ["b", "a"]


async def test_an_adapter_is_kept_for_the_requests_that_began_with_it(bench: Bench) -> None:
    """A name that goes to another folder and owner leads to the new one from now on only: were the old one let go, or
    the new one put in its place, a request on its way would fail, or be answered by another organisation's weights."""
    engine = bench.engine("a")
    assert isinstance(engine, Adaptable)
    bench.adapters = (AdapterSettings("x", "/one", "us"),)
    assert (await bench.reloader.reload("first")).changed == ["models.a.adapters"]
    (first,) = engine.folders
    with bench.loads.held() as load:
        bench.adapters = (AdapterSettings("x", "/two", "them"),)
        await bench.reloader.reload("second")
        assert sorted(engine.folders.values()) == ["/one", "/two"]
        assert load.pipeline.routes.engines["a:x"] != bench.loads.current.pipeline.routes.engines["a:x"]
    assert list(engine.folders.values()) == ["/two"]
    assert first not in engine.folders
    assert bench.built["a"] == [engine]
    assert engine.finished == 2, "each was tried once"


async def test_an_adapter_that_cannot_be_served_changes_nothing(bench: Bench) -> None:
    """One that fails when it is tried is refused with the whole configuration, and the engine forgets it again."""
    engine = bench.engine("a")
    assert isinstance(engine, Adaptable)
    engine.fail_after = 0
    bench.adapters = (AdapterSettings("x", "/one"), AdapterSettings("y", "/two"))
    with pytest.raises(InvalidRequest, match="Nothing was changed") as refused:
        await bench.reloader.reload("first")
    assert refused.value.code == "adapter_not_loaded"
    assert not engine.folders
    assert list(bench.loads.current.pipeline.routes.engines) == ["a"]
