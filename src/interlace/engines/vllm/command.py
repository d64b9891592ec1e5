"""How `vllm serve` is started: its arguments and its environment, both of them only what is known to be meant."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from interlace.config import ModelSettings
from interlace.errors import CheckpointError, ConfigError
from interlace.models import resolve

OURS = frozenset(
    {
        "host", "port", "uds", "root-path", "api-key", "served-model-name", "model", "config", "load-format",
        "trust-remote-code", "enable-lora", "no-enable-lora", "max-loras", "lora-modules", "max-model-len",
        "allow-credentials", "allowed-origins", "allowed-local-media-path", "ssl-keyfile", "ssl-certfile",
        "ssl-ca-certs", "enable-ssl-refresh", "middleware", "hf-token", "hf-overrides", "code-revision", "headless",
        "worker-extension-cls", "logits-processors", "tool-parser-plugin", "reasoning-parser-plugin",
        "io-processor-plugin", "worker-cls", "enable-log-requests", "log-config-file", "max-log-len",
        "tokenizer", "tokenizer-revision", "download-dir", "chat-template", "trust-request-chat-template",
    }
)  # fmt: skip
"""What `arguments` may not say: who reaches the server, what it loads, code that it would run, prompts that it would
log. Each is either set here or stays as it is."""

_PASSED = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "USER", "LD_LIBRARY_PATH", "LD_PRELOAD", "VIRTUAL_ENV")
_PASSED_GROUPS = (
    "LC_", "CUDA_", "NVIDIA_", "NCCL_", "HIP_", "ROCR_", "HSA_", "OMP_", "KMP_", "MKL_", "TORCH_", "TORCHINDUCTOR_",
    "PYTORCH_", "TRITON_", "FLASHINFER_", "XDG_", "VLLM_",
)  # fmt: skip
_KEY = "VLLM_API_KEY"


def check_vllm(settings: ModelSettings) -> None:
    """Raises `ConfigError` for settings of a `vllm serve` of ours that contradict each other or cannot be."""
    here = bool(settings.executable)
    for name in ("arguments", "max_loras", "adapters"):
        if getattr(settings, name) and not here:
            raise _wrong(settings, f"`{name}` is for a vLLM that is started here", "Give `executable` too")
    if not here:
        return
    for name in ("base_url", "api_key"):
        if getattr(settings, name):
            raise _wrong(
                settings, f"`{name}` is for a server elsewhere, `executable` for one here", "Remove one of them"
            )
    path = Path(settings.executable)
    if not path.is_absolute():
        raise _wrong(settings, "`executable` is no absolute path", "Write it from / on, such as /opt/vllm/bin/vllm")
    if not os.access(path, os.X_OK) or path.is_dir():
        raise _wrong(settings, f"there is no program {path}", "Name the `vllm` command of an environment that has it")
    for argument in settings.arguments:
        _check_argument(settings, argument)
    if settings.adapters and not settings.max_loras:
        raise _wrong(settings, "it has adapters, but `max_loras` is 0", "Say how many may be in one batch")


def _check_argument(settings: ModelSettings, argument: str) -> None:
    name = argument.removeprefix("--").partition("=")[0].partition(".")[0].replace("_", "-").lower()
    if not argument.startswith("--") or not name or not argument.isprintable():
        raise _wrong(
            settings, f"`arguments` has {argument!r}, which is no option", "Write each as --name or --name=value"
        )
    # argparse takes any unambiguous beginning of an option for the option.
    if any(own.startswith(name) for own in OURS) or name in {"no-" + own for own in OURS}:
        raise _wrong(settings, f"`arguments` may not say --{name}", "Remove it: Interlace decides that")


def model_path(settings: ModelSettings, home: Path) -> Path:
    """The folder of the checkpoint: `model` is a name in the store, or a path. Raises `ConfigError`."""
    try:
        path = resolve(settings.model, home).path
    except CheckpointError as error:
        raise _wrong(settings, error.message.removesuffix("."), "Pull it, or name its folder") from error
    if not path.is_dir():
        raise _wrong(settings, f"{path} is one file", "vLLM is given a folder with safetensors")
    return path


def arguments_of(settings: ModelSettings, path: Path, port: int) -> list[str]:
    """The whole command. No secret is in it: everybody on the machine can read it."""
    command = [
        settings.executable, "serve", str(path.absolute()),
        "--host", "127.0.0.1", "--port", str(port),
        "--served-model-name", settings.model,
        "--load-format", "safetensors",  # weights are data: no pickle is loaded
    ]  # fmt: skip
    if settings.context_length:
        command += ["--max-model-len", str(settings.context_length)]
    if settings.max_loras:
        command += ["--enable-lora", "--max-loras", str(settings.max_loras)]
    return [*command, *settings.arguments]


def environment_of(env: Mapping[str, str], key: str) -> dict[str, str]:
    """What the server sees of our environment: what programs and GPUs need, no key but its own. It calls nobody."""
    passed = {
        name: value
        for name, value in env.items()
        if (name in _PASSED or name.startswith(_PASSED_GROUPS)) and not name.startswith("VLLM_ALLOW_")
    }
    return passed | {
        _KEY: key,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_HOST_IP": "127.0.0.1",  # where its own processes meet
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_PLUGINS": "",
    }


def _wrong(settings: ModelSettings, problem: str, mend: str) -> ConfigError:
    return ConfigError(f"model {settings.name}: {problem}. {mend}.")
