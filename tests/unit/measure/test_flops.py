"""FLOPs against `flops_per_token`, which knows no operations, and against torch's own counter."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from ds_llama.config import LlamaConfig, preset, presets
from ds_llama.measure.accounting import Account
from ds_llama.measure.flops import Flops
from ds_llama.model import attention
from ds_llama.model.llama import Llama

SHAPE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SHAPES = {
    "MHA": SHAPE,
    "GQA": SHAPE | {"num_key_value_heads": 2},
    "tied": SHAPE | {"tie_word_embeddings": True, "num_hidden_layers": 3, "head_dim": 32},
}
ROWS = 2


@pytest.fixture(autouse=True)
def _whole_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention in one call at every length, as everywhere but on a CPU."""
    monkeypatch.setattr(attention, "_HALVED", (0, 0))


def counted(config: LlamaConfig, tokens: int, wrap: Any = None) -> Flops:
    model = Llama(config, init=False)
    for block in model.model.layers if wrap is not None else ():
        block.forward = wrap(block.forward)
    ids = torch.zeros(ROWS, tokens, dtype=torch.int64)
    with Flops() as flops:
        model(ids, labels=ids).loss.backward()
    return flops


def scores(config: LlamaConfig, tokens: int) -> int:
    """What a fused kernel's backward computes again: one product, half of the square."""
    return config.num_hidden_layers * config.attention_size * ROWS * tokens**2


@pytest.mark.parametrize("tokens", [2, 64, 257, 1024])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_step_is_the_formula(shape: dict[str, Any], tokens: int) -> None:
    config = LlamaConfig(**shape)
    flops = counted(config, tokens)
    assert flops.model == config.flops_per_token(tokens) * ROWS * tokens
    assert (flops.recomputed, flops.in_kernels) == (0, scores(config, tokens))
    assert flops.to_dict()["hardware"] == flops.model + flops.in_kernels


@pytest.mark.parametrize("name", presets())
def test_so_is_every_preset(name: str) -> None:
    """With two of its blocks: the others are the same once more."""
    config = preset(name).model_copy(update={"num_hidden_layers": 2})
    with FakeTensorMode(allow_non_fake_inputs=True):
        flops = counted(config, 128)
    assert flops.model == config.flops_per_token(128) * ROWS * 128


def test_what_is_computed_twice_is_apart() -> None:
    config = LlamaConfig(**SHAPE)
    plain = counted(config, 64)
    again = counted(config, 64, lambda run: partial(checkpoint, run, use_reentrant=True))
    assert (again.forward, again.backward) == (plain.forward, plain.backward)
    head = 3 * 2 * config.num_embedding_parameters * ROWS * 64  # its products are all in forward
    assert again.recomputed == plain.forward - head
    assert again.in_kernels == plain.in_kernels == scores(config, 64)


def test_an_updates_products_are_not_the_models() -> None:
    weight = torch.ones(16, 16, requires_grad=True)

    def orthogonalise(parameter: torch.Tensor) -> None:
        parameter.grad @ parameter.grad

    weight.register_post_accumulate_grad_hook(orthogonalise)
    with Account() as account, Flops() as flops:
        with account.phase("forward"):
            loss = (weight @ weight).sum()
        with account.phase("backward"):
            loss.backward()
            weight.grad @ weight.grad
        with account.phase("step"), torch.no_grad():
            weight @ weight
    product = 2 * 16**3
    assert (flops.forward, flops.backward, flops.optimizer) == (product, 2 * product, 3 * product)
    assert flops.hardware == 3 * product


def test_torchs_own_counter_says_the_same_of_matrices() -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.Linear(64, 8))
    x = torch.ones(5, 3, 32, requires_grad=True)
    with Flops() as ours, FlopCounterMode(display=False) as theirs:
        layers(x).sum().backward()
    assert ours.model == ours.hardware == theirs.get_total_flops() == 3 * ours.forward


def test_a_step_with_the_full_square_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twin: attention that is not causal, which is what torch's formulas count."""
    config = LlamaConfig(**SHAPE)
    attend = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *args, is_causal, **kwargs: attend(*args, **kwargs),
    )
    right = config.flops_per_token(256) * ROWS * 256
    assert counted(config, 256).model == right + 6 * scores(config, 256)
