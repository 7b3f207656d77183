"""Small models and data that the tests of this room share. Imports no transformers: it is slow."""

from __future__ import annotations

from typing import Any

import numpy as np

from ds_llama.config import LlamaConfig
from ds_llama.model.llama import Llama

# A standard deviation of 0.5: with less, a greedy continuation soon repeats one token.
SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
    "bos_token_id": 1,
    "eos_token_id": None,
}


def small(*, seed: int = 5, **changes: Any) -> Llama:
    """A model in fp64, in eval mode."""
    return Llama(LlamaConfig.from_hf({**SMALL, **changes}), seed=seed).double().eval()


def windows(count: int, tokens: int = 65, seed: int = 0) -> list[np.ndarray[Any, Any]]:
    """Random sequences, int64."""
    drawn = np.random.default_rng(seed).integers(0, SMALL["vocab_size"], (count, tokens))
    return list(drawn.astype(np.int64))
