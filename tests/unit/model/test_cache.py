"""The KV cache: growth, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ds_llama.errors import ModelError
from ds_llama.model.cache import Cache


def pair(tokens: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 3, tokens, 4), torch.randn(batch, 3, tokens, 4)


def feed(cache: Cache, steps: list[int], layers: int = 2) -> None:
    """Every layer gives back all that it was given."""
    given: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(layers)]
    for step in steps:
        for layer in range(layers):
            given[layer].append(pair(step))
            k, v = cache.update(layer, *given[layer][-1])
            assert torch.equal(k, torch.cat([each[0] for each in given[layer]], 2))
            assert torch.equal(v, torch.cat([each[1] for each in given[layer]], 2))
        cache.advance(step)


@pytest.mark.parametrize("maximum", [None, 40])
def test_keeps_everything(maximum: int | None) -> None:
    cache = Cache(maximum)
    feed(cache, [5, 1, 1, 3, 30])
    assert cache.length == 40


def test_grows_by_doubling() -> None:
    cache = Cache()
    feed(cache, [8], layers=1)
    sizes = set()
    for _ in range(24):
        cache.update(0, *pair(1))
        cache.advance(1)
        sizes.add(cache.num_bytes)
    token = 2 * 2 * 3 * 4 * 4
    assert sizes == {16 * token, 32 * token}


def test_takes_its_memory_at_once_when_the_length_is_known() -> None:
    cache = Cache(max_length=40)
    cache.update(0, *pair(3))
    assert cache.num_bytes == 2 * 2 * 3 * 40 * 4 * 4


def test_full() -> None:
    cache = Cache(max_length=4)
    feed(cache, [4], layers=1)
    with pytest.raises(ModelError, match="5 tokens do not fit a cache of 4") as caught:
        cache.update(0, *pair(1))
    assert "max_length" in caught.value.remedy


def test_another_batch() -> None:
    cache = Cache()
    feed(cache, [4], layers=1)
    with pytest.raises(ModelError, match="holds 2 sequences, the call has 3") as caught:
        cache.update(0, *pair(1, batch=3))
    assert "Cache of its own" in caught.value.remedy


def test_gradients() -> None:
    k, v = pair(2)
    with pytest.raises(ModelError, match="holds no gradients") as caught:
        Cache().update(0, k.requires_grad_(), v)
    assert "no_grad" in caught.value.remedy
