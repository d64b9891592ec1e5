"""From a model's settings to a running engine: find the checkpoint, check memory, build, compile."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from interlace.config import ModelSettings
from interlace.engines.core import Core
from interlace.engines.local.constants import Precision
from interlace.engines.local.kept import kept_precision
from interlace.engines.local.kernel import find_kernel
from interlace.errors import ConfigError
from interlace.models import (
    Checkpoint,
    DecoderArchitecture,
    EncoderArchitecture,
    Layers,
    SuggestedSampling,
    check_memory,
    read_adapter,
    read_architecture,
    resolve,
)

if TYPE_CHECKING:
    from interlace.engines.local.adapter_bank import Adapter
    from interlace.engines.local.adapters import AdapterStore
    from interlace.engines.local.runner import Runner

log = logging.getLogger(__name__)


def load(settings: ModelSettings, home: Path, progress: Callable[[str], None]) -> Core:
    """See `interlace.engines.local.load_core`."""
    progress(f"finding checkpoint {settings.checkpoint}")
    checkpoint = resolve(settings.checkpoint, home)
    architecture = read_architecture(checkpoint.path)
    threads = settings.threads or physical_cores()
    if isinstance(architecture, EncoderArchitecture):
        from interlace.engines.local.encoder import load_encoder

        check_memory(checkpoint, 0)
        return load_encoder(checkpoint.path, threads=threads, progress=progress)
    if settings.precision == "auto":  # before any graph is there: one at a time is in memory
        from interlace.engines.local.measuring import Subject, settled

        settings = settled(settings, Subject(checkpoint, architecture, home, threads), progress)
    room = settings.cache_bytes + (settings.adapter_bytes if settings.adapters else 0)
    kept = kept_precision(settings.precision, checkpoint)
    check_memory(checkpoint, room, kept, graphs=2 if settings.adapters else 1)
    return _load_decoder(settings, checkpoint, architecture, threads, find_kernel(home), progress)


def _load_decoder(settings: ModelSettings, checkpoint: Checkpoint, architecture: DecoderArchitecture, threads: int,
                  kernel: Path | None, progress: Callable[[str], None]) -> Core:  # fmt: skip
    from interlace.engines.local.constraints import GrammarCompiler
    from interlace.engines.local.engine import LocalEngine
    from interlace.engines.local.prompts import Prompts
    from interlace.engines.local.runner import Runner
    from interlace.engines.local.template import load_template
    from interlace.engines.local.tokenizer import load_tokenizer

    progress("reading the tokenizer")
    path = checkpoint.path
    tokenizer = load_tokenizer(path)
    prompts = Prompts(tokenizer, load_template(path, tokenizer), GrammarCompiler(tokenizer, architecture.vocabulary))
    progress("compiling the model")
    precision = _precision(settings)
    runner = Runner(
        path, architecture, precision=precision, cache_bytes=settings.cache_bytes, threads=threads, kernel=kernel
    )
    formats = ", ".join(f"{count} x {kept}" for kept, count in sorted(runner.report.formats.items()))
    log.info(
        "%s: weights kept as %s; largest error of a re-coded one %.2g of its tensor's largest value; "
        "cache of %d blocks of 32 tokens",
        settings.name, formats, runner.report.worst_error, runner.cache_blocks,
    )  # fmt: skip
    adapters = _adapters(settings, runner, checkpoint)
    return LocalEngine(
        runner,
        prompts,
        suggested=checkpoint.manifest.sampling if settings.sampling == "model" else SuggestedSampling(),
        vocabulary=architecture.vocabulary,
        context_length=min(settings.context_length or architecture.context_length, architecture.context_length),
        max_sequences=settings.max_sequences,
        max_waiting=settings.max_waiting,
        step_tokens=max(settings.step_tokens, settings.max_sequences),  # room for one token of each
        precision=precision,
        adapters=adapters,
        border=architecture.border,
    )


def _adapters(settings: ModelSettings, runner: Runner, checkpoint: Checkpoint) -> AdapterStore:
    """The store of the model's adapters, with those that its settings name."""
    from interlace.engines.local.adapters import AdapterStore

    def read(folder: Path) -> Layers:
        return read_adapter(folder, runner.linear_shapes, most_bytes=settings.adapter_bytes, head=runner.head_shape)

    def make(name: str, serial: int, layers: Layers) -> Adapter:
        if not runner.takes(layers):  # the first adapter has another graph compiled, beside the plain one
            check_memory(checkpoint, 0, kept_precision(settings.precision, checkpoint))
        return runner.adapter(name, serial, layers)

    store = AdapterStore(read, make, settings.adapter_bytes)
    for adapter in settings.adapters:
        store.register(adapter.name, Path(adapter.folder))
    return store


def _precision(settings: ModelSettings) -> Precision:
    known: tuple[Precision, ...] = get_args(Precision)
    for precision in known:
        if precision == settings.precision:
            return precision
    raise ConfigError(f"model {settings.name}: precision {settings.precision!r} is none of {', '.join(known)}")


def physical_cores() -> int:
    """Cores this process may run on, two hardware threads of one core counted once: what matrix products scale with."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))
