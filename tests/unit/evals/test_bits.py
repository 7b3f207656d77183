"""Greedy text in every training dtype: transformers' tokens, because the logits have its bits.

A half-precision model that is rounded elsewhere takes another token at a near tie, soon enough.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from ds_llama.evals.generate import generate
from ds_llama.model import attention
from ds_llama.model.cache import Cache
from ds_llama.model.llama import Llama
from tests.unit.evals.models import small

NEW = 24
# Lengths of a batch's prompts: of those above 256 attention without a cache is in two calls.
BATCHES = ([7], [300], [12, 3, 9], [270, 1])


def pair(seed: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Llama, Any]:
    """`from_config` and `from_pretrained` keep rope's frequencies in fp32; `.to` would not."""
    ours = small(max_position_embeddings=512, initializer_range=0.3, seed=seed).to(dtype)
    config = transformers.LlamaConfig(**ours.config.to_hf())
    theirs = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs.eval()


def drawn(lengths: list[int], seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 97, (n,), generator=generator).tolist() for n in lengths]


def by_transformers(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    longest = max(map(len, prompts))
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    settings = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    return model.generate(ids, attention_mask=mask, **settings)[:, longest:].tolist()


def logits(model: Any, ids: Tensor) -> Tensor:
    """All of them, the last token's from the cache."""
    cache = Cache() if isinstance(model, Llama) else transformers.DynamicCache()
    with torch.no_grad():
        pieces = [ids[:, :-1], ids[:, -1:]]
        return torch.cat([model(piece, past_key_values=cache).logits for piece in pieces], 1)


@pytest.mark.parametrize(
    ("dtype", "seeds"), [(torch.bfloat16, 4), (torch.float16, 2), (torch.float32, 2)], ids=str
)
def test_tokens_and_bits_are_transformers(dtype: torch.dtype, seeds: int) -> None:
    for seed in range(seeds):
        ours, theirs = pair(seed, dtype)
        prompts = drawn(BATCHES[-1 - seed], seed)
        expected = by_transformers(theirs, prompts)
        assert generate(ours, prompts, max_new_tokens=NEW) == expected
        assert len({token for row in expected for token in row}) > 10
        ids = torch.tensor(prompts[:1])
        assert torch.equal(logits(ours, ids), logits(theirs, ids))


def test_twin_rope_in_fp32_writes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "rotate_rounded", attention.rotate)
    same = []
    for seed in range(3):
        ours, theirs = pair(seed)
        prompts = drawn([20], seed)
        same.append(generate(ours, prompts, max_new_tokens=NEW) == by_transformers(theirs, prompts))
    assert not all(same)


def test_twin_attention_in_two_calls_has_other_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pair(0, torch.float32)
    ids = torch.tensor(drawn([300], 0))
    attend = attention.attend
    monkeypatch.setattr(attention, "attend", lambda *args, whole=False: attend(*args))
    assert not torch.equal(logits(ours, ids), logits(theirs, ids))
