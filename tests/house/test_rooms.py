"""The shape of the source: direction of imports, cheap front doors, short files."""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import interlace

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
HEAVY = (
    "openvino", "torch", "transformers", "tokenizers", "llguidance", "huggingface_hub", "gguf", "numpy", "safetensors",
    "aiohttp",
)  # fmt: skip
ROOMS = (
    "cli", "config", "deposits", "engines", "engines.host", "engines.local", "engines.remote", "errors", "gateway",
    "ledger", "models", "safety", "tuning",
)  # fmt: skip


def _modules() -> list[str]:
    found = pkgutil.walk_packages(interlace.__path__, "interlace.")
    run_by_others = ("__main__", "migrations.env")  # scripts: they do their work when imported
    return [module.name for module in found if not module.name.endswith(run_by_others)]


def test_the_import_contract_holds() -> None:
    """Dependencies point one way; `lint-imports` names the line that does not."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("room", ROOMS)
def test_a_front_door_loads_nothing_heavy(room: str) -> None:
    """Importing a room costs milliseconds: heavy libraries come with the module that needs them, when it is used."""
    code = f"import sys, interlace.{room}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []


def test_help_loads_no_room() -> None:
    """`interlace --help` is quick because it imports the command line alone, and the words for its errors."""
    code = (
        "import sys; from interlace.cli import main; sys.argv = ['interlace', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(*sorted(m for m in sys.modules if m.startswith('interlace.')), sep=',')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = done.stdout.splitlines()[-1].split(",")
    assert {name for name in loaded if not f"{name}.".startswith("interlace.cli.")} == {"interlace.errors"}


@pytest.mark.parametrize("name", _modules())
def test_what_a_module_exports_is_there(name: str) -> None:
    """Every name in an `__all__` exists, once."""
    module = importlib.import_module(name)
    exported = getattr(module, "__all__", [])
    assert len(exported) == len(set(exported))
    assert [one for one in exported if not hasattr(module, one)] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_a_file_is_read_in_one_sitting(path: Path) -> None:
    """No source file outgrows 500 lines."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500
