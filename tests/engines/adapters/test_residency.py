"""Requests and adapters that come and go while others run: nobody's answer changes, nobody waits for another's file."""

from __future__ import annotations

import gc
import shutil
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interlace.config import AdapterSettings
from interlace.engines.local.adapters import AdapterStore
from interlace.engines.local.engine import LocalEngine
from interlace.engines.types import GenerateRequest, Outcome, Sampling, Usage
from interlace.errors import EngineFailed, InterlaceError, NotFound
from tests.support.adapters import lora_tensors, random_adapter, write_adapter
from tests.support.driving import Outcomes, load, run, token_ids
from tests.support.tiny import VOCABULARY, tiny_llama_safetensors, tiny_weights

CROWD = 6
BLOCK_BYTES = 2 * 2 * 2 * 32 * 16 * 4  # layers, keys and values, heads, tokens, head size, float32


def _request(id: str, adapter: str = "", *, prompt: int = 7, tokens: int = 30, n: int = 1) -> GenerateRequest:
    ids = tuple(3 + (prompt * (i + 3)) % (VOCABULARY - 3) for i in range(prompt))
    sampling = Sampling(max_tokens=tokens, temperature=0, ignore_eos=True, logprobs=0)
    return GenerateRequest(id=id, prompt_ids=ids, sampling=sampling, adapter=adapter, n=n)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base in `base`, and adapters in `0`, `1`, ..."""
    folder = tmp_path_factory.mktemp("adapters")
    tiny_llama_safetensors(folder / "base")
    for number in range(CROWD):
        random_adapter(folder / str(number), number)
    return folder


def _engine(folder: Path, **changed: Any) -> LocalEngine:
    adapters = tuple(AdapterSettings(str(n), str(folder / str(n))) for n in range(CROWD))
    engine = load(folder / "base", **({"cache_bytes": 1 << 20, "adapters": adapters} | changed))
    assert isinstance(engine, LocalEngine)
    return engine


@pytest.fixture(scope="module")
def engine(folder: Path) -> LocalEngine:
    """The base with all adapters and room for them."""
    return _engine(folder)


def _usual(outcomes: list[Outcome]) -> bool:
    return isinstance(outcomes[-1], Usage)


def test_unknown_adapter(engine: LocalEngine) -> None:
    """A name the model does not have is refused at once, and tells nothing of those it has."""
    for name in ("nobody", "../0", "0/", " 0"):
        with pytest.raises(NotFound) as refused:
            engine.prepare(_request("a", name))
        assert "1" not in refused.value.message


def test_broken_adapter_fails_alone(engine: LocalEngine, tmp_path: Path) -> None:
    """A request with a broken adapter ends with an error that says what is wrong; those beside it never notice."""
    alone = token_ids(run(engine, [_request("a", "1")])["a"])
    tensors = lora_tensors(tiny_weights(), "q_proj")
    next(iter(tensors.values()))[0, 0] = np.nan
    engine.register_adapter("nan", write_adapter(tmp_path / "nan", tensors, target_modules=["q_proj"]))
    engine.register_adapter("nowhere", tmp_path / "nowhere")
    outcomes = run(engine, [_request("x", "nan"), _request("a", "1"), _request("y", "nowhere", n=2)])
    assert token_ids(outcomes["a"]) == alone
    for id, says in (("x", "not finite"), ("y", "adapter_config.json is missing")):
        (error,) = outcomes[id]
        assert isinstance(error, EngineFailed)
        assert says in error.message
    engine.register_adapter("nan", write_adapter(tmp_path / "mended", lora_tensors(tiny_weights(), "[qv]_proj")))
    assert _usual(run(engine, [_request("x", "nan")])["x"])


def test_removed_and_replaced_while_running(engine: LocalEngine, folder: Path, tmp_path: Path) -> None:
    """Requests keep the adapter they began with: its name removed, its folder emptied, another in its place."""
    for number in (2, 3):
        shutil.copytree(folder / str(number), tmp_path / str(number))
    alone = {number: token_ids(run(engine, [_request("a", number)])["a"]) for number in ("2", "3")}
    engine.register_adapter("new", tmp_path / "2")
    done = False

    def replace(outcomes: Outcomes) -> None:
        nonlocal done
        if not done and len(outcomes["a"]) > 5:
            done = True
            engine.remove_adapter("new")
            shutil.rmtree(tmp_path / "2")
            with pytest.raises(NotFound):
                engine.prepare(_request("b", "new"))
            engine.register_adapter("new", tmp_path / "3")
            outcomes["b"] = []
            engine.add(engine.prepare(_request("b", "new")))

    outcomes = run(engine, [_request("a", "new"), _request("c")], each_step=replace)
    assert token_ids(outcomes["a"]) == alone["2"]
    assert token_ids(outcomes["b"]) == alone["3"]


def test_loading_stalls_nobody(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While an adapter is being read, others get their tokens; cancelled meanwhile, its request leaves nothing."""
    engine = _engine(folder)
    alone = token_ids(run(engine, [_request("a")])["a"])
    door = threading.Event()
    loaded = AdapterStore._loaded

    def slowly(store: AdapterStore, registration: Any) -> Any:
        assert door.wait(20)
        return loaded(store, registration)

    monkeypatch.setattr(AdapterStore, "_loaded", slowly)
    for id in ("x", "y"):
        engine.add(engine.prepare(_request(id, "0")))
    outcomes: Outcomes = {"a": []}
    engine.add(engine.prepare(_request("a")))
    while not (outcomes["a"] and _usual(outcomes["a"])):
        for id, outcome in engine.step():
            outcomes[id].append(outcome)
    assert token_ids(outcomes["a"]) == alone
    assert engine.has_work()
    engine.cancel("x")
    door.set()
    rest: list[Outcome] = []
    while engine.has_work():
        rest += [outcome for id, outcome in engine.step() if id == "y"]
    assert _usual(rest)
    assert engine.health().blocks_used == 0


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_history(folder: Path, engine: LocalEngine, data: st.DataObject) -> None:
    """Arrivals, lengths, cancels and adapters at random, with a cache of seven blocks and memory for two or three
    adapters: each request answers as it does alone, and every block comes back."""
    crowded = _crowded(folder)
    visits = data.draw(
        st.lists(
            st.tuples(
                st.sampled_from(["", *map(str, range(CROWD))]),
                st.integers(1, 90),  # prompt
                st.integers(1, 30),  # tokens
                st.sampled_from([1, 1, 2]),
                st.integers(0, 25),  # comes before this step
                st.sampled_from([None, None, 3, 9]),  # cancelled so many steps later
            ),
            min_size=1,
            max_size=9,
        )
    )
    outcomes: Outcomes = {}
    given_up = set()
    step = 0
    while step <= 40 or crowded.has_work():
        for number, (adapter, prompt, tokens, n, comes, stays) in enumerate(visits):
            if comes == step:
                outcomes[str(number)] = []
                request = _request(str(number), adapter, prompt=prompt, tokens=tokens, n=n)
                try:
                    crowded.add(crowded.prepare(request))
                except InterlaceError as error:
                    outcomes[str(number)].append(error)
            if stays is not None and comes + stays == step:
                crowded.cancel(str(number))
                given_up.add(str(number))
        for id, outcome in crowded.step():
            outcomes[id].append(outcome)
        step += 1
    assert crowded.health().blocks_used == 0
    for number, (adapter, prompt, tokens, n, _, _) in enumerate(visits):
        seen = outcomes[str(number)]
        if str(number) in given_up and not (seen and _usual(seen)):
            continue
        alone = run(engine, [_request("a", adapter, prompt=prompt, tokens=tokens)])["a"]
        for index in range(n):
            assert token_ids(seen, index) == token_ids(alone)


_crowded_engines: dict[Path, LocalEngine] = {}


def _crowded(folder: Path) -> LocalEngine:
    """The base with a cache of seven blocks, steps of eleven tokens, and memory for two or three of the adapters."""
    if folder not in _crowded_engines:
        engine = _engine(folder, cache_bytes=7 * BLOCK_BYTES, max_sequences=4, step_tokens=11)
        engine._adapters._most_bytes = 60_000
        _crowded_engines[folder] = engine
    return _crowded_engines[folder]


def test_an_engine_that_nobody_has_is_gone(folder: Path) -> None:
    """The thread that loads adapters would keep a whole model in memory, or outlive it."""
    loaders = _loaders()
    engine = _engine(folder)
    run(engine, [_request("a", "1")])
    assert len(_loaders()) == len(loaders) + 1
    gone = weakref.ref(engine._runner)
    del engine
    gc.collect()
    for loader in _loaders() - loaders:
        loader.join(10)
    assert _loaders() <= loaders
    gc.collect()
    assert gone() is None


def _loaders() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "adapter loader"}
