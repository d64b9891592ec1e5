"""The adapters of one `vllm serve`: loaded by its own API when the first request names them."""

from __future__ import annotations

import http.client
import itertools
import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from interlace.engines.remote import RemoteEngine
from interlace.engines.vllm.server import HOST, Server
from interlace.errors import CheckpointError, EngineFailed, InterlaceError, NotFound
from interlace.models import Shapes, check_adapter

log = logging.getLogger(__name__)

LOAD_SECONDS = 120.0
MOST_BYTES = 64 << 10
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


@dataclass(eq=False)
class _Known:
    folder: Path
    called: str  # at the server: a name that is given anew never meets what it was before
    turn: threading.Lock = field(default_factory=threading.Lock)  # one thread loads it, the others wait
    engine: RemoteEngine | None = None  # once it is loaded


class Adapters:
    """Called from the reader and the preparers; `make` gives the engine that asks for a name at the server.
    `shapes` are the base's."""

    def __init__(self, server: Server, make: Callable[[str], RemoteEngine], shapes: Shapes) -> None:
        self._server = server
        self._shapes = shapes
        self._make = make
        self._known: dict[str, _Known] = {}
        self._serials = itertools.count(1)

    def register(self, name: str, folder: Path) -> None:
        """From now on `name` is the adapter in `folder`."""
        self.remove(name)
        self._known[name] = _Known(folder, f"{name}~{next(self._serials)}")

    def remove(self, name: str) -> None:
        """From now on there is none of that name; the server is told beside whatever else runs."""
        known = self._known.pop(name, None)
        if known is not None:
            threading.Thread(target=self._unload, args=(name, known), name="unloading", daemon=True).start()

    def engine(self, name: str) -> RemoteEngine:
        """The one that asks for it, once the server has it. Raises `NotFound` and `EngineFailed`."""
        known = self._known.get(name)
        if known is None:
            raise NotFound(f"The model has no adapter {name}.", param="model", code="model_not_found")
        with known.turn:
            if known.engine is None:
                _check(name, known.folder, self._shapes)
                body = {"lora_name": known.called, "lora_path": str(known.folder.absolute())}
                self._tell("/v1/load_lora_adapter", name, body)
                known.engine = self._make(known.called)
            return known.engine

    def _unload(self, name: str, known: _Known) -> None:
        with known.turn:
            if known.engine is not None:
                try:
                    self._tell("/v1/unload_lora_adapter", name, {"lora_name": known.called})
                except InterlaceError as error:
                    log.warning("the adapter %s stays in memory: %s", name, error.message)

    def _tell(self, path: str, name: str, body: dict[str, str]) -> None:
        """Raises `EngineFailed` with what the server says, the adapter's name in it."""
        connection = http.client.HTTPConnection(HOST, self._server.port, timeout=LOAD_SECONDS)
        headers = {"Authorization": f"Bearer {self._server.key}", "Content-Type": "application/json"}
        try:
            connection.request("POST", path, json.dumps(body), headers)
            answer = connection.getresponse()
            said = answer.read(MOST_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise EngineFailed(f"The adapter {name} could not be loaded: vLLM does not answer.") from error
        finally:
            connection.close()
        if answer.status != http.client.OK:
            log.error("vllm serve answered %d to %s: %s", answer.status, path, said[:500].decode(errors="replace"))
            raise EngineFailed(f"The adapter {name} could not be loaded: vLLM refuses it; the log says why.")


def _check(name: str, folder: Path, shapes: Shapes) -> None:
    """Raises `EngineFailed` for what vLLM must not read: anything unsound, and a folder with a pickle in it."""
    try:
        check_adapter(folder, shapes)
    except CheckpointError as error:
        raise EngineFailed(f"The adapter {name} could not be loaded: {error.message}") from error
    if any(path.suffix in _PICKLES for path in folder.iterdir()):
        raise EngineFailed(f"The adapter {name} could not be loaded: its folder has a pickle in it. Remove that file.")
