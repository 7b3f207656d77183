"""litgpt's GPT as a peer, under the same DeepSpeed JSON and this package's step.

    "program": ["ds_llama", "../peers/litgpt.py"]

litgpt is not among this package's extras, since it pins other versions of what transformers needs.
Its model alone runs with

    pip install --no-deps litgpt lightning lightning-utilities torchmetrics

and a cell of it is an error that says so where it is not there. Model and loss are those of its
pretraining (litgpt/pretrain.py): whole logits, their cross entropy 128 rows at a time, and that in
the training dtype, so that in bf16 its losses are off by some thousandths.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from litgpt.config import Config
from litgpt.model import GPT, Block, CausalSelfAttention, LLaMAMLP
from litgpt.utils import chunked_cross_entropy
from torch import Tensor, nn

from ds_llama.config.resolve import Resolved
from ds_llama.errors import CallError
from ds_llama.model.traits import Traits
from ds_llama.zero import construct, register, world
from ds_llama.zero import engine as engines
from ds_llama.zero.step import Batch, take_step

TRAITS = Traits(
    Block,
    no_decay=("*.norm_1.weight", "*.norm_2.weight", "*.ln_f.weight"),
    decay=("*.wte.weight", "*.attn.*", "*.mlp.*", "*lm_head.weight"),
    attention_class=CausalSelfAttention,
    mlp_class=LLaMAMLP,
)
_NAMES = {
    "input_layernorm": "norm_1",
    "post_attention_layernorm": "norm_2",
    "self_attn.o_proj": "attn.proj",
    "mlp.gate_proj": "mlp.fc_1",
    "mlp.up_proj": "mlp.fc_2",
    "mlp.down_proj": "mlp.proj",
}


def open_program(resolved: Resolved, options: dict[str, Any], way: str) -> Any:
    """litgpt's model with the weights that the run starts from; collective."""
    return _LitGPT(resolved, options["compile"])


class Trained(nn.Module):
    """litgpt's model in the words of a training step."""

    def __init__(self, resolved: Resolved) -> None:
        super().__init__()
        self.gpt = GPT(config_of(resolved))
        self.gpt.load_state_dict(weights_of(resolved))

    def forward(self, input_ids: Tensor, labels: Tensor) -> SimpleNamespace:
        targets = F.pad(labels[:, 1:], (0, 1), value=-100)
        return SimpleNamespace(loss=chunked_cross_entropy(self.gpt(input_ids), targets))


class _LitGPT:
    def __init__(self, resolved: Resolved, compiled: bool) -> None:
        model = Trained(resolved)
        for parameter in model.parameters():  # not the buffers: rotary tables stay in fp32
            parameter.data = parameter.data.to(getattr(torch, resolved.dtype))
        model.train().to(world.device())
        self.engine = register.initialize(model, resolved, resolved.deepspeed, TRAITS)
        if compiled:
            self.engine.compile()

    def step(self, window: Sequence[Batch]) -> tuple[float, float | None]:
        result = take_step(self.engine, window)
        assert result is not None
        return result.loss, result.grad_norm

    def close(self) -> None:
        engines.destroy(self.engine)


def config_of(resolved: Resolved) -> Config:
    """The run's model in litgpt's words. Raises CallError for what is not mapped here."""
    model = resolved.model
    rope = model.rope_parameters
    if rope.rope_type != "default" or model.tie_word_embeddings or model.attention_bias:
        raise CallError(
            "is mapped here without scaled RoPE, tied embeddings and biases only",
            where="benchmarks/peers/litgpt.py",
            remedy="leave this model out of the cells of this program",
        )
    return Config(
        name="peer",
        block_size=max(resolved.run.data.sequence_length, 1),
        n_layer=model.num_hidden_layers,
        n_embd=model.hidden_size,
        vocab_size=model.vocab_size,
        padded_vocab_size=model.vocab_size,
        norm_class_name="RMSNorm",
        norm_eps=model.rms_norm_eps,
        parallel_residual=False,
        n_head=model.num_attention_heads,
        n_query_groups=model.num_key_value_heads,
        head_size=model.head_dim,
        rope_base=int(rope.rope_theta),
        rotary_percentage=1.0,
        bias=False,
        mlp_class_name="LLaMAMLP",
        intermediate_size=model.intermediate_size,
    )


def weights_of(resolved: Resolved) -> dict[str, Tensor]:
    """The run's initial weights under litgpt's names; query, key and value rows joined."""
    ours = construct.build(resolved, how="plain").state_dict()
    found = {
        "lm_head.weight": ours["lm_head.weight"],
        "transformer.wte.weight": ours["model.embed_tokens.weight"],
        "transformer.ln_f.weight": ours["model.norm.weight"],
    }
    for layer in range(resolved.model.num_hidden_layers):
        source, target = f"model.layers.{layer}.", f"transformer.h.{layer}."
        for theirs, litgpts in _NAMES.items():
            found[f"{target}{litgpts}.weight"] = ours[f"{source}{theirs}.weight"]
        rows = [ours[f"{source}self_attn.{name}_proj.weight"] for name in "qkv"]
        found[f"{target}attn.qkv.weight"] = torch.cat(rows)
    return found
