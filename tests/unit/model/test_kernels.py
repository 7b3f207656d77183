"""The hand-written backward passes: gradcheck in fp64, halves against fp32, recomputation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ds_llama.model.mlp import SwigluLinear, _SwigluLinear
from ds_llama.model.norm import RMSNorm, _RMSNorm
from ds_llama.model.rope import rotate

Function = Callable[..., Tensor]


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return _RMSNorm.apply(x, weight, 1e-5)


def swiglu(gate: Tensor, up: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _SwigluLinear.apply(gate, up, weight, bias)


def turn(q: Tensor, k: Tensor) -> Tensor:
    angles = torch.arange(3)[:, None, None] * torch.tensor([1.0, 0.1])
    return torch.cat(rotate(q, k, angles.cos(), angles.sin()), 2)


def plain_norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5))


def plain_swiglu(gate: Tensor, up: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(F.silu(gate) * up, weight, bias)


SHAPES = {
    "norm": [(2, 3, 8), (8,)],
    "swiglu": [(2, 3, 8), (2, 3, 8), (5, 8), (5,)],
    "turn": [(2, 3, 2, 4), (2, 3, 1, 4)],
}
KERNELS: dict[str, Function] = {"norm": norm, "swiglu": swiglu, "turn": turn}
PLAIN: dict[str, Function] = {"norm": plain_norm, "swiglu": plain_swiglu}


@pytest.mark.parametrize("name", KERNELS)
def test_gradcheck(name: str) -> None:
    assert torch.autograd.gradcheck(KERNELS[name], [draw(*shape) for shape in SHAPES[name]])


@pytest.mark.parametrize("name", ["norm", "swiglu"])
def test_twin_gradcheck_sees_a_wrong_gradient(name: str) -> None:
    def spoiled(*tensors: Tensor) -> Tensor:
        out = KERNELS[name](*tensors)
        return out + (1e-3 * tensors[0].sum() - (1e-3 * tensors[0].sum()).detach().clone()).detach()

    def wrong(*tensors: Tensor) -> Tensor:
        return KERNELS[name](*tensors) + 1e-3 * (tensors[0].sum() - tensors[0].detach().sum())

    inputs = [draw(*shape) for shape in SHAPES[name]]
    assert torch.autograd.gradcheck(spoiled, inputs)
    assert not torch.autograd.gradcheck(wrong, inputs, raise_exception=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", PLAIN)
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    inputs = [draw(*shape, dtype=dtype) for shape in SHAPES[name]]
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    got, wanted = KERNELS[name](*inputs), PLAIN[name](*wide)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance)
    upstream = torch.ones_like(got)
    for mine, theirs in zip(
        torch.autograd.grad(got, inputs, upstream),
        torch.autograd.grad(wanted, wide, upstream.double()),
        strict=True,
    ):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("needed", range(4))
@pytest.mark.parametrize("name", ["norm", "swiglu"])
def test_gradient_of_one_input_only(name: str, needed: int) -> None:
    inputs = [draw(*shape) for shape in SHAPES[name]]
    if needed >= len(inputs):
        needed = 0
    everything = torch.autograd.grad(KERNELS[name](*inputs).sum(), inputs)
    alone = [t if i == needed else t.detach() for i, t in enumerate(inputs)]
    (got,) = torch.autograd.grad(KERNELS[name](*alone).sum(), [alone[needed]])
    assert torch.equal(got, everything[needed])


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", KERNELS)
def test_recomputed(name: str, reentrant: bool) -> None:
    inputs = [draw(*shape) for shape in SHAPES[name]]
    wanted = torch.autograd.grad(KERNELS[name](*inputs).square().sum(), inputs)
    out = checkpoint(KERNELS[name], *inputs, use_reentrant=reentrant)
    out.square().sum().backward()
    assert all(torch.equal(t.grad, w) for t, w in zip(inputs, wanted, strict=True))


@pytest.mark.parametrize("name", ["norm", "swiglu"])
def test_autocast_gives_gradients_in_the_parameters_dtype(name: str) -> None:
    x = draw(2, 3, 8, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if name == "norm":
            module = RMSNorm(8, 1e-5)
            torch.nn.init.ones_(module.weight)
            out = module(x)
        else:
            module = SwigluLinear(8, 5)
            torch.nn.init.normal_(module.weight)
            torch.nn.init.zeros_(module.bias)
            out = module(x.bfloat16(), x.bfloat16())
            assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in module.parameters())


def test_no_second_derivative() -> None:
    x, weight = draw(2, 3, 8), draw(8)
    (grad,) = torch.autograd.grad(norm(x, weight).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
