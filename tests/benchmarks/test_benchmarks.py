"""The benchmarks run from start to end and write what they promise. Nothing here asserts speed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HAS_TOOLS = (shutil.which("nginx") and shutil.which("wrk")) or (os.geteuid() == 0 and shutil.which("apt-get"))
ENGINE = {
    "engine": {"interlace f32", "bare loop f32"},
    "adapters": {
        f"{precision}, {which}"
        for precision in ("f32", "bf16")
        for which in (
            "base (beside q and v)",
            "32 of q and v",
            "base (beside all modules)",
            "32 of all modules",
            "1,000 of all modules",
        )
    },
    "endpoint": {"called directly", "through the endpoint"},
    "ledger": {"bare pipeline", "whole pipeline", "whole, 10,000 keys"},
}
CONTEST = {
    "contest": {
        *(f"interlace {precision}" for precision in ("f32", "bf16", "int8", "file")),
        *(
            f"interlace {p}, {what}"
            for p in ("f32", "bf16")
            for what in ("32 adapters", "32 on q, v", "1,000 adapters")
        ),
    }
}
GATEWAY = {
    "hop": {"Interlace", "nginx"},
    "streaming": {"Interlace", "nginx", "direct"},
    "growth": {"small", "10,000 keys", "10,000 organisations", "a million events"},
    "startup": {"starlette imported", "interlace --help", "interlace serve"},
}


def _run(tmp_path: Path, parts: dict[str, set[str]], environment: dict[str, str]) -> dict[str, dict]:
    """The reports of a quick run of these parts, their files looked at."""
    only = [word for part in parts for word in ("--only", part)]
    command = [sys.executable, "-m", "benchmarks", "--quick", "--without-peers", "--results", str(tmp_path), *only]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=840, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    reports = {}
    for name, contestants in parts.items():
        reports[name] = report = json.loads((tmp_path / f"{name}.json").read_text())
        assert {rate["contestant"] for rate in report["rates"]} - {"4 processes"} == contestants
        assert all(value > 0 for rate in report["rates"] for value in rate["values"])
        assert "median (min–max)" in (tmp_path / f"{name}.md").read_text()
        assert (tmp_path / f"{name}.svg").read_text().lstrip().startswith("<?xml")
    return reports


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_a_quick_run_measures_the_engine_and_writes_its_files(tmp_path: Path, smollm2_gguf: Path, smollm2_f32: Path):
    """One round of small shapes without vLLM: JSON, table and plot of each part, every rate positive."""
    environment = os.environ | {
        "INTERLACE_BENCH_GGUF": str(smollm2_gguf),
        "INTERLACE_BENCH_F32": str(smollm2_f32),
        "INTERLACE_HOME": str(tmp_path / "home"),
    }
    reports = _run(tmp_path, ENGINE, environment)
    assert set(reports["endpoint"]["beside"]) == {"1 stream", "4 streams"}
    assert {one["phase"] for one in reports["endpoint"]["added"]} == {"first"}


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_a_quick_contest_measures_us_and_writes_its_files(tmp_path: Path, smollm2_gguf: Path, smollm2_f32: Path):
    """One round of small shapes without peers: every precision, every kind of adapter, memory of each process."""
    environment = os.environ | {"INTERLACE_BENCH_GGUF": str(smollm2_gguf), "INTERLACE_BENCH_F32": str(smollm2_f32)}
    (report,) = _run(tmp_path, CONTEST, environment).values()
    assert {rate["phase"] for rate in report["rates"]} >= {
        "decode",
        "prefill",
        "arrive",
        "late",
        "flow",
        "peak",
        "beside_all",
        "beside_qv",
    }
    assert report["left_out"] == {}


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.skipif(not HAS_TOOLS, reason="nginx and wrk are not installed, and cannot be")
def test_a_quick_run_measures_the_gateway_and_writes_its_files(tmp_path: Path):
    """One short round beside nginx alone: what needs environments of its own is left out, and nothing else."""
    reports = _run(tmp_path, GATEWAY, dict(os.environ))
    assert all(rate["values"] == [100.0] for rate in reports["streaming"]["rates"] if rate["phase"] == "arrived")
    assert {one["phase"] for one in reports["growth"]["bounds"]} == {"start", "per_thousand"}
