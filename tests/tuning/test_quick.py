"""What makes learning quicker leaves what is learnt as it is."""

from __future__ import annotations

import pytest

from tests.support.tuned import needs_parts

pytestmark = needs_parts


def test_dropout_leaves_out_its_share_and_keeps_the_mean() -> None:
    """Another share, or one that is not made up for, would teach an adapter that is too strong or too weak in use."""
    import torch

    from interlace.tuning.quick import QuickDropout

    torch.manual_seed(3)
    dropout = QuickDropout(0.25)
    inputs = torch.ones(7, 14321, requires_grad=True)
    outputs = dropout(inputs)
    out = outputs == 0
    assert float(out.float().mean()) == pytest.approx(0.25, abs=0.01)
    assert float(out[:, ::8].float().mean()) == pytest.approx(0.25, abs=0.02)  # every byte of a word is of chance
    assert float(out[:, 7::8].float().mean()) == pytest.approx(0.25, abs=0.02)
    assert float(outputs.detach().mean()) == pytest.approx(1, abs=0.02)
    outputs.sum().backward()
    assert torch.equal(inputs.grad, outputs.detach())
    assert not torch.equal(dropout(inputs), outputs)
    torch.manual_seed(3)
    assert torch.equal(dropout(inputs), outputs)  # a run that goes on draws the same
    assert dropout(torch.ones(3, 5, device="meta")).device.type == "meta"  # wherever the model may go
    assert dropout.eval()(inputs) is inputs


def test_weights_that_are_rounded_once_teach_the_same() -> None:
    """Loss and gradients in bfloat16 are, to the bit, those of weights that are rounded for each row; the embeddings,
    and the head that has their weights, stay."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from interlace.tuning.quick import round_once

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=64, tie_word_embeddings=True, **sizes))
    model = get_peft_model(base, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    ids = torch.randint(0, 64, (1, 24))

    def learnt() -> list[torch.Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        return [loss.detach(), *(each.grad.clone() for each in model.parameters() if each.grad is not None)]

    before = learnt()
    round_once(model)
    after = learnt()
    assert len(before) == len(after) > 20
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    kinds = {name: each.dtype for name, each in model.named_parameters()}
    assert kinds["base_model.model.model.embed_tokens.weight"] == torch.float32
    assert kinds["base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"] == torch.bfloat16
    assert kinds["base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"] == torch.float32
