"""The encoder's graph against transformers on small random models: every pooling, activation and shape."""

from dataclasses import replace

import numpy as np
import openvino as ov
import pytest

from interlace.engines.local.encoder_graph import build_encoder
from interlace.errors import CheckpointError
from interlace.models import EncoderArchitecture, open_weights
from interlace.models.decoder_hf import ACTIVATIONS

torch = pytest.importorskip("torch")

SMALL = EncoderArchitecture(
    family="bert", layers=2, hidden=24, heads=3, feed_forward=40, vocabulary=50, positions=16, token_types=2,
    norm_epsilon=1e-5, activation="gelu", max_tokens=16, pooling="mean", normalize=False,
)  # fmt: skip
IDS = np.random.default_rng(0).integers(0, 50, size=(3, 9))
MASK = np.arange(9) < np.array([[9], [4], [1]])


def twin(folder, activation):
    """transformers' BertModel with random weights, saved to `folder`."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=SMALL.vocabulary,
        hidden_size=SMALL.hidden,
        num_hidden_layers=SMALL.layers,
        num_attention_heads=SMALL.heads,
        intermediate_size=SMALL.feed_forward,
        hidden_act=activation,
        max_position_embeddings=SMALL.positions,
        layer_norm_eps=SMALL.norm_epsilon,
        initializer_range=0.5,  # far from linear, so that a wrong activation shows
    )
    model = BertModel(config).eval()
    with torch.no_grad():
        for name, values in model.named_parameters():
            if name.endswith("bias") or "LayerNorm" in name:
                values.add_(torch.randn_like(values) * 0.3)
    model.save_pretrained(folder)
    return model


def pooled(hidden, pooling):
    """sentence-transformers' definitions, text by text on its own tokens."""
    texts = [rows[mask] for rows, mask in zip(hidden, MASK, strict=True)]
    return {
        "cls": lambda: np.stack([text[0] for text in texts]),
        "mean": lambda: np.stack([text.mean(0) for text in texts]),
        "max": lambda: np.stack([text.max(0) for text in texts]),
        "mean_sqrt_len": lambda: np.stack([text.sum(0) / np.sqrt(len(text)) for text in texts]),
    }[pooling]()


def compute(folder, architecture):
    """What our graph makes of IDS and MASK."""
    with open_weights(folder) as weights:
        model = build_encoder(architecture, weights)
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled([IDS, MASK.astype(np.float32)])[0]


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
def test_every_activation_and_pooling_equals_transformers(tmp_path, activation):
    """Hidden states, pooled each way, normalised or not, equal transformers' within 1e-5 for padded texts."""
    oracle = twin(tmp_path, activation)
    with torch.no_grad():
        hidden = oracle(torch.tensor(IDS), attention_mask=torch.tensor(MASK)).last_hidden_state.numpy()
    for pooling in ("cls", "mean", "max", "mean_sqrt_len"):
        expected = pooled(hidden, pooling)
        architecture = replace(SMALL, activation=ACTIVATIONS[activation], pooling=pooling)
        np.testing.assert_allclose(compute(tmp_path, architecture), expected, atol=1e-5)
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(compute(tmp_path, replace(architecture, normalize=True)), unit, atol=1e-5)


def test_weights_of_another_shape_are_refused_by_name(tmp_path):
    """A config that does not fit its weights gets a clear error, not one from inside the runtime."""
    twin(tmp_path, "gelu")
    with open_weights(tmp_path) as weights, pytest.raises(CheckpointError, match=r"intermediate\.dense\.weight"):
        build_encoder(replace(SMALL, feed_forward=41), weights)
    with open_weights(tmp_path) as weights, pytest.raises(CheckpointError, match=r"layer\.2\."):
        build_encoder(replace(SMALL, layers=3), weights)
