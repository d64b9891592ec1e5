"""What `make dist` makes: a wheel with all that belongs in it, that serves in an environment of its own."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import httpx
import pytest

from tests.support.serving import environment, free_port, serving

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from this tree."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (made,) = folder.glob("interlace-*.whl")
    return made


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """Every file of the package is in it, data files too; tests and caches are not; licence and notice come along."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = {name for name in names if name.startswith("interlace/")}
    sources = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src" / "interlace").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert package == sources
    assert {"interlace/py.typed", "interlace/models/catalogue.yaml"} <= package
    rest = {name.partition(".dist-info/")[2] for name in names - package}
    assert rest == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE", "licenses/NOTICE"}


def test_the_source_archive_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    """Whoever builds from the source archive gets the files we publish."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (archive,) = tmp_path.glob("interlace-*.tar.gz")
    subprocess.run(["tar", "-xzf", str(archive)], cwd=tmp_path, check=True)
    unpacked = tmp_path / archive.name.removesuffix(".tar.gz")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path / "again")]
    subprocess.run(command, cwd=unpacked, check=True, capture_output=True, timeout=60)
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(*(tmp_path / "again").glob("*.whl")) as second:
        assert sorted(first.namelist()) == sorted(second.namelist())


@pytest.mark.timeout(900)
def test_the_wheel_serves_in_a_clean_environment(wheel: Path, smollm2_gguf: Path, tmp_path: Path) -> None:
    """Installed with its default dependencies alone, no torch near, it says its version, serves and answers."""
    folder = tmp_path / "venv"
    venv.create(folder)
    python, command = folder / "bin" / "python", (str(folder / "bin" / "interlace"),)
    # A pip from outside, and bytecode of what is used alone: half of the time went into these.
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile"]
    pip += ["--constraint", ROOT / "constraints.txt", wheel]
    subprocess.run([str(word) for word in pip], check=True, timeout=600)
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True, timeout=30)
    assert version.stdout.startswith("interlace 0.")
    names = "from importlib.metadata import distributions; print(*(one.name for one in distributions()))"
    listed = subprocess.run([python, "-c", names], capture_output=True, text=True, check=True, timeout=60)
    assert "interlace" in listed.stdout.split()
    assert not {"torch", "transformers", "pytest"} & set(listed.stdout.split())
    home = tmp_path / "home"
    home.mkdir()
    pull = [*command, "pull", str(smollm2_gguf), "--name", "smollm2-135m-instruct"]
    subprocess.run(pull, env=environment(home), check=True, timeout=120)
    with serving(home, free_port(), command=command) as there:
        answer = httpx.post(
            f"{there.url}/v1/chat/completions",
            headers={"authorization": f"Bearer {there.key}"},
            json={
                "model": "smollm2-135m-instruct",
                "messages": [{"role": "user", "content": "What is the capital of France?"}],
                "max_tokens": 16,
                "temperature": 0,
            },
            timeout=60,
            trust_env=False,
        )
    assert "Paris" in answer.json()["choices"][0]["message"]["content"], answer.text
