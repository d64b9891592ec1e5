"""`python dequantise.py FILE.gguf FOLDER`: let transformers de-quantise a GGUF and save it as float32 safetensors.

A process of its own, so that a test worker does not keep torch and a gigabyte of weights for the rest of its life.
"""

import sys
from pathlib import Path

import torch
import transformers


def main(gguf: Path, folder: str) -> None:
    """Write weights, config and tokenizer; the model must forget that it came quantised, or saving refuses."""
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    del model.config.quantization_config
    model.is_quantized = False
    model.hf_quantizer = None
    model.quantization_method = None
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(**where).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
