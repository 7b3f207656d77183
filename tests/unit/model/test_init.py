"""Initial values are a function of (seed, name, index) and of nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ds_llama.config import LlamaConfig
from ds_llama.errors import ModelError
from ds_llama.model import init
from ds_llama.model.llama import Llama

SIZE = 2 * init.BLOCK + 12345
NAME = "model.layers.0.mlp.up_proj.weight"
RULE = init.Rule(SIZE, std=0.02)
WHOLE = init.draw(NAME, RULE, 0, SIZE, 7)


def config(**overrides: Any) -> LlamaConfig:
    small = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "vocab_size": 200,
    }
    return LlamaConfig.from_hf({**small, **overrides})


@settings(max_examples=15, deadline=None)
@given(st.integers(0, SIZE), st.integers(0, SIZE))
def test_any_slice_can_be_drawn_alone(a: int, b: int) -> None:
    start, stop = min(a, b), max(a, b)
    assert torch.equal(init.draw(NAME, RULE, start, stop, 7), WHOLE[start:stop])


@pytest.mark.parametrize("edge", [init.BLOCK - 1, init.BLOCK, init.BLOCK + 1])
def test_slices_at_the_edges_of_blocks(edge: int) -> None:
    got = torch.cat((init.draw(NAME, RULE, 0, edge, 7), init.draw(NAME, RULE, edge, SIZE, 7)))
    assert torch.equal(got, WHOLE)


def test_filled_in_place_in_another_dtype() -> None:
    target = torch.empty(5000, dtype=torch.bfloat16)
    init.fill_(target, NAME, RULE, init.BLOCK - 2000, 7)
    assert torch.equal(target, WHOLE[init.BLOCK - 2000 :][:5000].bfloat16())


def test_normal_statistics() -> None:
    assert WHOLE.dtype == torch.float32
    assert abs(WHOLE.mean()) < 4 * 0.02 / SIZE**0.5
    assert WHOLE.std() == pytest.approx(0.02, rel=4 / (2 * SIZE) ** 0.5)
    assert (WHOLE.abs() < 0.02).double().mean() == pytest.approx(0.6827, abs=2e-3)
    assert WHOLE[: init.BLOCK].unique().numel() > 0.8 * init.BLOCK


@pytest.mark.parametrize(("name", "seed"), [("another", 7), (NAME, 8)])
def test_another_name_or_seed_draws_other_values(name: str, seed: int) -> None:
    other = init.draw(name, RULE, 0, 10_000, seed)
    assert abs(torch.corrcoef(torch.stack((other, WHOLE[:10_000])))[0, 1]) < 0.05


def test_blocks_differ() -> None:
    assert not torch.equal(WHOLE[:1000], WHOLE[init.BLOCK :][:1000])


def test_threads_do_not_matter() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(init.draw(NAME, RULE, 0, SIZE, 7), WHOLE)
    finally:
        torch.set_num_threads(before)


def test_the_table() -> None:
    model = Llama(config(attention_bias=True, mlp_bias=True, initializer_range=0.05), seed=0)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.05, rel=0.05), name


def test_same_seed_same_model_whatever_the_global_generator() -> None:
    first = Llama(config(), seed=5)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    second = Llama(config(), seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    third = Llama(config())
    torch.manual_seed(124)
    assert not torch.equal(Llama(config()).lm_head.weight, third.lm_head.weight)


def test_meta_then_filled_equals_plain() -> None:
    plain = Llama(config(), seed=9).bfloat16()
    with torch.device("meta"):
        other = Llama(config())
    assert all(parameter.is_meta for parameter in other.parameters())
    other = other.bfloat16().to_empty(device="cpu")
    init.initialize_(other, 9)
    for (name, a), b in zip(plain.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_depth_does_not_change_the_first_layers() -> None:
    shallow, deep = Llama(config(), seed=1), Llama(config(num_hidden_layers=4), seed=1)
    deeper = dict(deep.named_parameters())
    for name, parameter in shallow.named_parameters():
        assert torch.equal(parameter, deeper[name]), name


def test_partitioned_parameters_have_their_full_size() -> None:
    model = Llama(config(), seed=0)
    weight = model.lm_head.weight
    weight.ds_shape = weight.shape
    weight.data = torch.empty(0)
    assert init.rules(model)["lm_head.weight"] == init.Rule(200 * 64, std=0.02)


def test_a_name_without_a_rule() -> None:
    model = Llama(config(), seed=0)
    model.model.rotation = nn.Linear(2, 2)
    with pytest.raises(ModelError, match=r"model\.rotation\.weight") as caught:
        init.initialize_(model, 0)
    assert "LlamaForCausalLM" in caught.value.remedy
