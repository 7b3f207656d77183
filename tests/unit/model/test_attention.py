"""Attention in two halves, which some lengths take on a CPU, is attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ds_llama.model import attention


def heads(tokens: int, key_heads: int) -> list[torch.Tensor]:
    torch.manual_seed(tokens)
    shapes = [(2, 4, tokens, 16), (2, key_heads, tokens, 16), (2, key_heads, tokens, 16)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def outcome(out: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    return [out, *torch.autograd.grad(out.square().sum(), inputs)]


@pytest.mark.parametrize(("tokens", "key_heads"), [(257, 4), (300, 2), (511, 1), (512, 4)])
def test_halves_are_the_whole(tokens: int, key_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = heads(tokens, key_heads)
    taken = []
    halves = attention._attend_in_halves
    monkeypatch.setattr(attention, "_attend_in_halves", lambda *a: taken.append(1) or halves(*a))
    found = outcome(attention.attend(*inputs, None), inputs)
    whole = F.scaled_dot_product_attention(*inputs, is_causal=True, enable_gqa=True)
    for ours, theirs in zip(found, outcome(whole, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert taken


@pytest.mark.parametrize("tokens", [256, 513])
def test_other_lengths_are_one_call(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(attention, "_attend_in_halves")
    attention.attend(*heads(tokens, 4), None)


def test_twin_a_mask_that_is_one_off_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = heads(300, 4)
    tril = torch.Tensor.tril
    monkeypatch.setattr(torch.Tensor, "tril", lambda self, n: tril(self, n + 1))
    found = attention.attend(*inputs, None)
    whole = F.scaled_dot_product_attention(*inputs, is_causal=True)
    assert not torch.allclose(found, whole, rtol=1e-3)
