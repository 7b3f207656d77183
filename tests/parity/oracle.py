"""Hugging Face's LlamaForCausalLM beside ours: same weights, same batch, one number of difference.

Weights are drawn with a standard deviation of 0.2 and sequences are longer than the scaled ropes'
original length: small weights and short sequences hide a missing rope scaling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig as HFConfig
from transformers import LlamaForCausalLM
from transformers.models.llama import modeling_llama

from ds_llama.config import LlamaConfig
from ds_llama.model.llama import Llama

TOKENS = 96
SMALL = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}
ROPES["yarn-untruncated"] = {
    **ROPES["yarn"],
    "truncate": False,
    "beta_fast": 16.0,
    "beta_slow": 2.0,
    "mscale": 1.0,
    "mscale_all_dim": 0.5,
}
CASES: dict[str, dict[str, Any]] = {
    "mha": {},
    "gqa": {"num_key_value_heads": 2},
    "mqa": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "head_dim": {"head_dim": 24, "num_key_value_heads": 2},
    "padding_idx": {"pad_token_id": 3},
    **{f"rope-{name}": {"rope_parameters": rope} for name, rope in ROPES.items()},
}


def small_config(**overrides: Any) -> LlamaConfig:
    return LlamaConfig.from_hf({**SMALL, **overrides})


def huggingface(
    config: LlamaConfig, dtype: torch.dtype = torch.float64, attention: str = "sdpa"
) -> LlamaForCausalLM:
    """Hugging Face's model of `config` with spread-out weights."""
    model = LlamaForCausalLM(HFConfig(**config.to_hf(), attn_implementation=attention))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.2 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(spread + 1 if parameter.dim() == 1 else spread)
    return model.to(dtype)


def ours(theirs: LlamaForCausalLM, config: LlamaConfig) -> Llama:
    """Our model with the same weights, taken over as they are."""
    model = Llama(config, init=False).to(theirs.dtype)
    model.load_state_dict(theirs.state_dict(), strict=True)
    return model


def tokens(config: LlamaConfig, batch: int = 2, length: int = TOKENS) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, config.vocab_size, (batch, length), generator=generator)


def difference(got: Tensor | None, wanted: Tensor | None) -> float:
    """Greatest deviation relative to the greatest value; infinite for NaN or a missing tensor."""
    if got is None or wanted is None:
        return 0.0 if got is wanted else float("inf")
    scale = wanted.abs().max().clamp(min=torch.finfo(wanted.dtype).tiny)
    result = ((got - wanted).abs().max() / scale).item()
    return result if result == result else float("inf")


def differences(got: nn.Module, wanted: nn.Module, prefix: str = "grad ") -> dict[str, float]:
    """`difference` of every parameter's gradient."""
    theirs = dict(wanted.named_parameters())
    mine = dict(got.named_parameters())
    assert mine.keys() == theirs.keys()
    return {prefix + name: difference(mine[name].grad, theirs[name].grad) for name in mine}


def mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Hugging Face's ForCausalLMLoss without its cast of fp64 logits to fp32."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def compare(
    model: Llama,
    theirs: LlamaForCausalLM,
    ids: Tensor,
    labels: Tensor,
    *,
    valid: Tensor | None = None,
    **inputs: Tensor,
) -> dict[str, float]:
    """Differences of logits (at `valid` positions), loss, and every parameter's gradient."""
    with exact_norms(theirs.dtype):
        wanted = theirs(ids, **inputs).logits
        wanted_loss = mean_loss(wanted, labels)
        theirs.zero_grad()
        wanted_loss.backward()
    with torch.no_grad():
        logits = model(ids, **inputs).logits
    model.zero_grad()
    loss = model(ids, labels=labels, **inputs).loss
    loss.backward()
    keep = torch.ones_like(ids, dtype=torch.bool) if valid is None else valid
    return {
        "logits": difference(logits[keep], wanted.detach()[keep]),
        "loss": difference(loss.detach(), wanted_loss.detach()),
        **differences(model, theirs),
    }


@contextmanager
def exact_norms(dtype: torch.dtype) -> Iterator[None]:
    """In fp64, let Hugging Face's norm stay in fp64: it rounds to fp32, which 1e-9 would see."""
    if dtype != torch.float64:
        yield
        return

    def forward(self: Any, x: Tensor) -> Tensor:
        variance = x.pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(variance + self.variance_epsilon))

    with patch.object(modeling_llama.LlamaRMSNorm, "forward", forward):
        yield


def worst(found: dict[str, float]) -> tuple[float, str]:
    name = max(found, key=found.__getitem__)
    return found[name], name


Sabotage = Callable[[Llama], object]
