"""How `vllm serve` is started: what stands on its command line, what it sees, and what may not be said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from interlace.config import AdapterSettings, ModelSettings
from interlace.engines.vllm.command import arguments_of, check_vllm, environment_of, model_path
from interlace.errors import ConfigError
from tests.support.vllms import Make


def test_the_command_line_is_what_the_settings_say(make: Make, checkpoint: Path):
    """Loopback alone, safetensors alone, room for adapters only where it was asked for; the operator's options last."""
    settings = make("--gpu-memory-utilization=0.8", context_length=2048)
    words = arguments_of(settings, checkpoint, 4711)
    assert words[1:3] == ["serve", str(checkpoint)]
    assert " ".join(words).count("127.0.0.1") == 1
    for option in ("--port 4711", "--load-format safetensors", "--max-model-len 2048", "--enable-lora --max-loras 2"):
        assert option in " ".join(words)
    assert words[-1] == "--gpu-memory-utilization=0.8"
    assert "lora" not in " ".join(arguments_of(replace(settings, max_loras=0), checkpoint, 4711))


def test_it_sees_what_a_gpu_needs_and_no_key_but_its_own():
    """A provider's key would be readable by whatever runs in that environment; and nothing calls home."""
    ours = {
        "PATH": "/bin", "CUDA_VISIBLE_DEVICES": "1", "OPENAI_API_KEY": "sk-theirs", "AWS_SECRET_ACCESS_KEY": "x",
        "VLLM_ATTENTION_BACKEND": "TORCH_SDPA", "VLLM_API_KEY": "old", "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
        "PYTHONPATH": "/evil", "HF_TOKEN": "hf",
    }  # fmt: skip
    seen = environment_of(ours, "generated")
    assert seen["VLLM_API_KEY"] == "generated"
    assert (seen["PATH"], seen["CUDA_VISIBLE_DEVICES"]) == ("/bin", "1")
    assert seen["VLLM_ATTENTION_BACKEND"] == "TORCH_SDPA"
    assert (seen["HF_HUB_OFFLINE"], seen["VLLM_NO_USAGE_STATS"], seen["DO_NOT_TRACK"]) == ("1", "1", "1")
    assert seen["VLLM_HOST_IP"] == "127.0.0.1"
    gone = {"OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "VLLM_ALLOW_INSECURE_SERIALIZATION", "PYTHONPATH", "HF_TOKEN"}
    assert not gone & seen.keys()


@pytest.mark.parametrize(
    "argument",
    [
        "--host=0.0.0.0", "--port", "--api-key=x", "--trust-remote-code", "--trust_remote_code", "--trust-remote",
        "--no-trust-remote-code", "--load-format=pt", "--middleware=os.system", "--config=/tmp/x.yaml", "--uds=/tmp/x",
        "--lora-modules=a=/b", "--hf-overrides.architectures=x", "--ho=0.0.0.0", "serve", "-tp=2", "--",
        "--a\n--host=x", "--tool-parser-plugin=/tmp/x.py", "--HOST=0.0.0.0",
    ],
)  # fmt: skip
def test_an_option_that_is_ours_to_decide_is_refused(make: Make, argument: str):
    """None of them opens the port, loads code or pickles, or moves the key to the command line; nor does a short form
    or another spelling."""
    with pytest.raises(ConfigError, match="arguments"):
        check_vllm(make(argument))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"executable": "vllm"}, "absolute"),
        ({"executable": "/no/such/vllm"}, "no program /no/such/vllm"),
        ({"executable": "/tmp"}, "no program"),
        ({"base_url": "http://127.0.0.1:8000/v1"}, "`base_url`"),
        ({"api_key": "${KEY}"}, "`api_key`"),
        ({"executable": ""}, "Give `executable` too"),
        ({"max_loras": 0, "adapters": (AdapterSettings("a", "/a"),)}, "`max_loras` is 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(make: Make, fields: dict[str, object], words: str):
    """Each with its mend, before anything is started."""
    with pytest.raises(ConfigError, match=words):
        check_vllm(make(**fields))


def test_a_server_elsewhere_needs_none_of_it():
    """What `engine: vllm` meant before there was `executable` still stands."""
    check_vllm(ModelSettings("far", engine="vllm", model="m", base_url="http://far:8000/v1"))


def test_a_checkpoint_that_is_not_there_is_told(make: Make, tmp_path: Path):
    """By name of the model and what to do, and not by a vLLM that goes looking for it at the Hub."""
    with pytest.raises(ConfigError, match="model big"):
        model_path(make(model=str(tmp_path / "nothing")), tmp_path)
    with pytest.raises(ConfigError, match="model big"):
        model_path(make(model="someone/something"), tmp_path)
