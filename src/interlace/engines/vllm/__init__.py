"""A model that vLLM computes, on a machine with a GPU: `vllm serve` from an environment of its own, started and watched
by an engine host as a local engine is, and asked in OpenAI's dialect.

`command.py` says how it is started, `server.py` is its process, `core.py` what the host drives; `launch.py` is the
first thing that runs in the new process.
"""

from interlace.engines.vllm.command import check_vllm
from interlace.engines.vllm.core import load_core, vllm_fields

VLLM_CORE = f"{__name__}:load_core"

__all__ = ["VLLM_CORE", "check_vllm", "load_core", "vllm_fields"]
