"""Sums of multiples of a unit, in any order; the order-free norm; an AdamW without tails."""

from __future__ import annotations

import math
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_llama.config.optimizer import AdamW
from ds_llama.zero import exact

SIZE, WEIGHTS = 12, 8209


def sums_over(micro_batches: int, dtype: torch.dtype = torch.float32, clip: float = 0.0):
    """What `apply` makes for a model of one vector at stage 0, without an engine."""
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.zeros(SIZE, dtype=dtype))
    engine = SimpleNamespace(
        module=module,
        optimizer=None,
        zero_optimization_stage=lambda: 0,
        gradient_clipping=lambda: clip,
    )
    return exact.ExactSums(engine, micro_batches), engine


def give(engine: SimpleNamespace, gradients: list[torch.Tensor]) -> torch.Tensor:
    """Backward passes with these gradients of the weight, in this order; what they add up to."""
    weight = engine.module.weight
    weight.grad = None
    for gradient in gradients:
        (weight * gradient).sum().backward()
    return weight.grad


numbers = st.floats(-(2.0**60), 2.0**60, width=32).map(lambda x: x if abs(x) > 2.0**-60 else 0.0)
vectors = st.lists(numbers, min_size=SIZE, max_size=SIZE).map(torch.tensor)


@settings(max_examples=40)
@given(st.lists(vectors, min_size=1, max_size=9), st.randoms())
def test_a_sum_is_the_same_in_any_order(gradients, random):
    sums, engine = sums_over(len(gradients))
    give(engine, gradients)
    sums.before_update(engine)
    largest = max(float(g.abs().max()) for g in gradients)
    assert sums.rejected == (largest > 0)
    first = give(engine, gradients).clone()
    assert sums.before_update(engine) is not False
    assert not sums.rejected
    columns = zip(*(on_the_grid(sums, gradient) for gradient in gradients), strict=True)
    assert first.tolist() == [float(sum(map(Fraction, column))) for column in columns]
    random.shuffle(gradients)
    assert torch.equal(give(engine, gradients), first)
    if largest > 0:
        unit = 2.0 ** sums.exponents["weight"]
        assert unit <= 4 * 2 ** math.ceil(math.log2(len(gradients))) * 8 * largest / 2**24
        wanted = torch.stack(gradients).double().sum(0)
        assert float((first - wanted).abs().max()) <= len(gradients) * unit / 2


def on_the_grid(sums: exact.ExactSums, gradient: torch.Tensor) -> list[float]:
    return sums._rounded(0, "weight", gradient).tolist()


def test_without_a_unit_the_order_shows():
    gradients = [torch.full((SIZE,), x) for x in (1.0, 2.0**-24, 2.0**-24)]
    _, engine = sums_over(3)
    for parameter in engine.module.parameters():
        parameter._backward_hooks.clear()
    forth = give(engine, gradients).clone()
    assert not torch.equal(forth, give(engine, gradients[::-1]))


@settings(max_examples=40)
@given(vectors)
def test_bf16_gradients_stay_bf16_on_the_grid(gradient):
    gradient = gradient.bfloat16()
    sums, engine = sums_over(4, torch.bfloat16)
    for _ in range(2):
        give(engine, [gradient])
        sums.before_update(engine)
    found = give(engine, [gradient])
    if gradient.any():
        units = found.double() / 2.0 ** sums.exponents["weight"]
        assert torch.equal(units, units.round())
        large = gradient.abs() >= 2.0 ** (8 + sums.exponents["weight"])
        assert torch.equal(found[large], gradient[large]), "rounded already"


@pytest.mark.parametrize("growth", [1, 7.9, 8.1, 1e6, math.inf, math.nan])
def test_only_what_outgrows_the_headroom_is_run_again(growth):
    sums, engine = sums_over(4)
    gradient = torch.linspace(0.01, 0.99, SIZE)
    for _ in range(2):
        give(engine, [gradient] * 4)
        sums.before_update(engine)
    give(engine, [gradient * growth] + [gradient] * 3)
    update = sums.before_update(engine)
    again = 8 < growth < math.inf
    assert sums.rejected is again
    assert update is not again
    assert (engine.module.weight.grad is None) is again, "stage 0 forgets what it threw away"


@given(st.lists(st.integers(-(2**24), 2**24), max_size=40), st.integers(-90, 90))
def test_squares_are_exact(numbers, exponent):
    unit = 2.0**exponent
    flat = torch.tensor([n * unit for n in numbers], dtype=torch.float32)
    low, high = exact._squares(flat, unit).tolist()
    assert low + (high << 24) == sum(n * n for n in numbers)


def test_clips_as_torch_does():
    sums, engine = sums_over(2, clip=0.5)
    gradients = [torch.randn(SIZE), torch.randn(SIZE)]
    for _ in range(2):
        mean = give(engine, gradients)
        other = torch.nn.Parameter(torch.zeros(SIZE))
        other.grad = mean.clone()
        sums.before_update(engine)
    norm = torch.nn.utils.clip_grad_norm_([other], 0.5)
    assert sums.norm == pytest.approx(float(norm), rel=1e-6)
    torch.testing.assert_close(engine.module.weight.grad, other.grad)


def cut(optimizer, cuts: list[int]) -> torch.Tensor:
    """The weights after five updates of tensors that begin at `cuts`."""
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(WEIGHTS, generator=draw) * 0.05
    weights = [torch.nn.Parameter(part.clone()) for part in start.tensor_split(cuts)]
    inner = optimizer([{"params": weights, "weight_decay": 0.1}])
    for _ in range(5):
        scale = 10.0 ** torch.randint(-8, 0, (WEIGHTS,), generator=draw)
        gradient = torch.randn(WEIGHTS, generator=draw) * scale
        for weight, part in zip(weights, gradient.tensor_split(cuts), strict=True):
            weight.grad = part.clone()
        inner.step()
    return torch.cat([weight.detach() for weight in weights])


def adamw(groups):
    return exact.adamw(AdamW(lr=1e-3), groups)


def fused(groups):
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)


@settings(max_examples=8)
@given(st.lists(st.integers(0, WEIGHTS), max_size=9).map(sorted))
def test_adamw_does_not_know_where_a_partition_ends(cuts):
    assert torch.equal(cut(adamw, cuts), cut(adamw, []))


def test_adamw_is_torchs_and_the_fused_one_would_not_do():
    torch.testing.assert_close(cut(adamw, []), cut(fused, []))
    everywhere = list(range(13, WEIGHTS, 13))
    assert torch.equal(cut(adamw, everywhere), cut(adamw, []))
    assert not torch.equal(cut(fused, everywhere), cut(fused, [])), "then take the fused one"
