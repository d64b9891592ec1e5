"""A model that cannot be loaded: its name and fault are told, and nobody else pays for it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.served import COMPLETIONS, EMBEDDINGS, SECRET, Served, ask, embedder, patiently, served
from tests.support.serving import COMMAND, environment

FAULTS = {"truncated": "truncated", "magic": "GGUF", "missing": "does not exist"}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path, minilm: Path) -> Iterator[Served]:
    """`embedder`, sound, beside three that are not."""
    folder = tmp_path_factory.mktemp("mixed")
    with smollm2_gguf.open("rb") as whole:
        start = whole.read(20 << 20)
    (folder / "truncated.gguf").write_bytes(start)
    (folder / "magic.gguf").write_bytes(b"GGML" + start[4:])
    broken = [{"name": name, "checkpoint": str(folder / f"{name}.gguf")} for name in FAULTS]
    with served(folder, [*broken, embedder(minilm)], ready=False) as there:
        yield there


def test_the_others_are_served_and_the_fault_is_named(mixed: Served) -> None:
    """`/readyz` says what is wrong with each; the start-up lines say it too, and how to ask the sound one."""
    patiently(lambda: {m["state"] for m in mixed.get("/readyz").json()["models"].values()} == {"failed", "ready"})
    ready = mixed.get("/readyz")
    assert ready.status_code == 503
    models = ready.json()["models"]
    assert models["embedder"]["state"] == "ready"
    for name, fault in FAULTS.items():
        assert models[name]["state"] == "failed"
        assert fault in models[name]["detail"]
        assert f"{name}.gguf" in models[name]["detail"]
    patiently(lambda: "Try it:" in _printed(mixed))
    assert "truncated could not be loaded: " in _printed(mixed)
    assert '"model": "embedder"' in _printed(mixed)


async def test_requests_to_a_broken_model_say_where_the_reason_is(mixed: Served) -> None:
    """503 that does not promise that it will pass, and tells callers no path; the sound model answers."""
    patiently(lambda: mixed.metric("interlace_engine_ready", model="embedder") == 1)
    patiently(lambda: mixed.get("/readyz").json()["models"]["magic"]["state"] == "failed")
    async with mixed.callers() as client:
        embedded = await ask(client, {"model": "embedder", "input": SECRET}, EMBEDDINGS)
        refused = await ask(client, {"model": "magic", "prompt": SECRET}, COMPLETIONS)
    assert embedded.status == 200
    assert refused.status == 503
    assert refused.error is not None
    assert "/readyz" in refused.error["message"]
    assert "magic" not in refused.error["message"]


def test_a_broken_model_is_not_hammered(mixed: Served) -> None:
    """One try each, the next one half a minute later: while the sound model is asked again and again, no host of the
    broken ones runs."""
    patiently(lambda: "Try it:" in _printed(mixed))
    for name in FAULTS:
        deaths = [line["message"] for line in mixed.log_lines() if line["message"].startswith(f"model {name}: ")]
        assert len(deaths) == 1
        assert float(deaths[0].split("next start in ")[1].removesuffix(" s")) >= 20
        assert mixed.metric("interlace_engine_restarts_total", model=name) == 0
    assert set(mixed.hosts()) == {"embedder"}


def _printed(there: Served) -> str:
    return (there.folder / "out").read_text()


def test_nothing_is_served_when_no_model_can_be(tmp_path: Path) -> None:
    """A server without any checkpoint does not start: exit code 1, and a line for each model."""
    config = tmp_path / "interlace.yaml"
    config.write_text("port: 0\nmodels: [{name: a, checkpoint: ./a.gguf}, {name: b, checkpoint: ./b.gguf}]\n")
    done = subprocess.run(
        [*COMMAND, "serve", "--config", str(config)],
        env=environment(tmp_path), check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert "a.gguf does not exist" in done.stderr
    assert "b.gguf does not exist" in done.stderr
