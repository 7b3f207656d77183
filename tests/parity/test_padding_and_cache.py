"""Padded batches, and generation with the KV cache, against Hugging Face."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ds_llama.model.cache import Cache
from ds_llama.model.llama import Llama
from tests.parity.oracle import (
    CASES,
    ROPES,
    compare,
    difference,
    exact_norms,
    huggingface,
    ours,
    small_config,
    tokens,
    worst,
)

EXACT = 1e-9
PROMPT = 64


def padding(side: str, ids: Tensor) -> Tensor:
    """The second of two sequences is 27 tokens shorter."""
    mask = torch.ones_like(ids)
    if side == "left":
        mask[1, :27] = 0
    else:
        mask[1, -27:] = 0
    return mask


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["mha", "gqa", "rope-llama3"])
def test_padded_batch(name: str, side: str) -> None:
    config = small_config(**CASES[name])
    theirs = huggingface(config)
    model, ids = ours(theirs, config), tokens(config)
    mask = padding(side, ids)
    labels = ids.masked_fill(mask == 0, -100)
    valid = mask.bool()
    found = compare(model, theirs, ids, labels, valid=valid, attention_mask=mask)
    assert worst(found)[0] < EXACT, worst(found)
    assert model(ids, mask).logits.isfinite().all()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    found = compare(
        model, theirs, ids, labels, valid=valid, attention_mask=mask, position_ids=positions
    )
    assert worst(found)[0] < EXACT, worst(found)


def test_twin_padding_without_the_mask() -> None:
    config = small_config()
    theirs = huggingface(config)
    model, ids = ours(theirs, config), tokens(config)
    mask = padding("left", ids)
    with torch.no_grad(), exact_norms(torch.float64):
        wanted = theirs(ids, attention_mask=mask).logits[mask.bool()]
        got = model(ids).logits[mask.bool()]
    assert difference(got, wanted) > 1e-3


def test_a_mask_of_ones_is_no_mask() -> None:
    config = small_config()
    model, ids = Llama(config, seed=0), tokens(config)
    with torch.no_grad():
        assert torch.equal(model(ids, torch.ones_like(ids)).logits, model(ids).logits)


def decode(model: Llama, ids: Tensor, steps: list[int], mask: Tensor | None = None) -> Tensor:
    """Logits of all tokens, fed in pieces of the given lengths."""
    cache, pieces = Cache(), []
    with torch.no_grad():
        for piece in ids.split(steps, dim=1):
            seen = None if mask is None else mask[:, : cache.length + piece.shape[1]]
            pieces.append(model(piece, seen, past_key_values=cache).logits)
    assert cache.length == ids.shape[1]
    return torch.cat(pieces, 1)


@pytest.mark.parametrize("steps", [[PROMPT] + [1] * 32, [PROMPT, 7, 1, 24], [1] * 96])
@pytest.mark.parametrize("name", ["mha", "gqa", "mqa", "rope-linear", "rope-llama3", "rope-yarn"])
def test_incremental_decoding_equals_the_full_forward(name: str, steps: list[int]) -> None:
    config = small_config(**CASES[name])
    theirs = huggingface(config)
    ids = tokens(config)
    with torch.no_grad(), exact_norms(torch.float64):
        wanted = theirs(ids).logits
    assert difference(decode(ours(theirs, config), ids, steps), wanted) < EXACT


def test_incremental_decoding_of_a_left_padded_batch() -> None:
    config = small_config(**CASES["gqa"])
    theirs = huggingface(config)
    ids = tokens(config)
    mask = padding("left", ids)
    with torch.no_grad(), exact_norms(torch.float64):
        wanted = theirs(ids, attention_mask=mask).logits
    got = decode(ours(theirs, config), ids, [PROMPT, 5] + [1] * 27, mask)
    assert difference(got[mask.bool()], wanted[mask.bool()]) < EXACT


def test_twin_cache_that_forgets_positions() -> None:
    class Forgetful(Cache):
        def advance(self, tokens: int) -> None:
            super().advance(min(tokens, 3))

    config = small_config()
    theirs = huggingface(config)
    model, ids = ours(theirs, config), tokens(config)
    with torch.no_grad(), exact_norms(torch.float64):
        wanted = theirs(ids).logits[:, -1]
        cache = Forgetful()
        model(ids[:, :-1], past_key_values=cache)
        got = model(ids[:, -1:], past_key_values=cache).logits[:, -1]
    assert difference(got, wanted) > 1e-3


@pytest.mark.parametrize("name", ROPES)
def test_greedy_generation(name: str) -> None:
    """The same tokens as `generate`, past the original length of every rope."""
    config = small_config(rope_parameters=ROPES[name], eos_token_id=None, num_key_value_heads=2)
    theirs = huggingface(config)
    model, ids = ours(theirs, config), tokens(config, length=24)
    with exact_norms(torch.float64):
        wanted = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=24,
            do_sample=False,
            pad_token_id=0,
        )
    cache, got, piece = Cache(max_length=48), ids, ids
    with torch.no_grad():
        for _ in range(24):
            logits = model(piece, past_key_values=cache, logits_to_keep=1).logits
            piece = logits.argmax(-1)
            got = torch.cat((got, piece), 1)
    assert torch.equal(got, wanted)
