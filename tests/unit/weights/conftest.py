from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from ds_llama.config.model import LlamaConfig

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}


def _make(**changes: Any) -> tuple[LlamaConfig, transformers.LlamaForCausalLM]:
    config = LlamaConfig(**{**SIZES, **changes})
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config.to_hf())).eval()
    return config, model


@pytest.fixture
def make_model():
    """make_model(**config keys) -> (LlamaConfig, small LlamaForCausalLM, weights of std 0.2)."""
    return _make


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 97, (2, 64), generator=torch.Generator().manual_seed(1))
