"""The benchmarks run from start to end and write what they promise. Nothing here asserts speed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_a_quick_run_measures_both_parts_and_writes_their_files(tmp_path: Path, smollm2_gguf: Path, smollm2_f32: Path):
    """One round of small shapes without vLLM: JSON, table and plot for engine and hop, every rate positive."""
    environment = os.environ | {
        "INTERLACE_BENCH_GGUF": str(smollm2_gguf),
        "INTERLACE_BENCH_F32": str(smollm2_f32),
        "INTERLACE_HOME": str(tmp_path / "home"),
    }
    command = [sys.executable, "-m", "benchmarks", "--quick", "--without-vllm", "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=840, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, contestants in (
        ("engine", {"interlace f32", "bare loop f32"}),
        ("hop", {"called directly", "host and HTTP"}),
        ("ledger", {"bare pipeline", "whole pipeline", "whole, 10,000 keys"}),
    ):
        report = json.loads((tmp_path / f"{name}.json").read_text())
        assert {rate["contestant"] for rate in report["rates"]} == contestants
        assert all(value > 0 for rate in report["rates"] for value in rate["values"])
        assert ("added" if name == "ledger" else "ratio of") in (tmp_path / f"{name}.md").read_text()
        assert (tmp_path / f"{name}.svg").read_text().lstrip().startswith("<?xml")
    assert set(json.loads((tmp_path / "hop.json").read_text())["beside"]) == {"1 stream", "8 streams"}
