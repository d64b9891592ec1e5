"""The compiled operation that adapters run by where somebody has had it compiled: optional, and shipped as source only.

`interlace adapters compile` makes it with the machine's own C++ compiler, against the headers that the OpenVINO wheel
brings, for the processor it runs on. An engine uses what it finds under its home; without, adapters run by the
runtime's own operations, with the same results and slower.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from interlace.errors import ConfigError

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("lowrank.cpp")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-w")
_SECONDS = 300.0
_MEND = "interlace adapters compile makes it anew"


def kernel_path(home: Path) -> Path:
    """Where the operation for this source, runtime and processor lies, or would lie."""
    import openvino as ov

    about = SOURCE.read_bytes() + repr((_FLAGS, ov.__version__, platform.machine(), _processor())).encode()
    return home / "native" / f"lowrank-{hashlib.sha256(about).hexdigest()[:16]}.so"


def find_kernel(home: Path) -> Path | None:
    """The compiled operation; None where there is none, or somebody else could have written it."""
    path = kernel_path(home)
    try:
        found = path.stat()
    except OSError:
        if any(path.parent.glob("lowrank-*.so")):
            log.warning(
                "adapters run slower than they could: what was compiled is of another processor or version; %s", _MEND
            )
        return None
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
        log.warning("%s is not used: others than this user may write it", path)
        return None
    try:
        node_factory(path), packer(path)
    except (OSError, RuntimeError, AttributeError) as error:  # of another system's libraries, say
        log.warning("adapters run slower than they could: %s cannot be loaded (%s); %s", path, error, _MEND)
        return None
    return path


def compile_kernel(home: Path) -> Path:
    """Compile the operation; returns where it lies. Raises `ConfigError`."""
    import openvino as ov

    compiler = next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
    if compiler is None:
        raise ConfigError("There is no C++ compiler (on Debian: apt-get install g++). Adapters run without it, slower.")
    runtime = Path(ov.__file__).parent
    libraries = [*(runtime / "libs").glob("libopenvino.so.*"), *(runtime / "libs").glob("libtbb.so.*")]
    path = kernel_path(home)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        command = [compiler, *_FLAGS, f"-I{runtime / 'include'}", str(SOURCE), "-o", str(made), *map(str, libraries)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        if done.returncode:
            raise ConfigError(f"{compiler} cannot compile {SOURCE.name}: {done.stderr.strip()[-1000:]}")
        made.chmod(0o700)
        made.rename(path)
    return path


@cache
def node_factory(kernel: Path) -> Any:
    """Makes nodes of the operation; loads it."""
    from openvino.utils.node_factory import NodeFactory

    factory = NodeFactory()
    factory.add_extension(str(kernel))
    return factory


@cache
def packer(kernel: Path) -> Any:
    """Its functions `interlace_measure` and `interlace_lay_down`, each given an array of pieces and how many they are;
    they run without Python's lock."""
    import openvino  # noqa: F401  what the library is linked with is found where this has loaded it

    library = ctypes.CDLL(str(kernel))
    for function in (library.interlace_measure, library.interlace_lay_down):
        function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_int64], None
    return library


def _processor() -> str:
    """What tells this machine's instructions from another's that shares the home."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
