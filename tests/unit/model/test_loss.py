"""The fused LM head and cross entropy against torch's own on fp32 logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ds_llama.errors import ModelError
from ds_llama.model import loss as module
from ds_llama.model.loss import LMHead, linear_cross_entropy

N, D, V = 150, 24, 131


def inputs(dtype: torch.dtype, scale: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator).to(dtype).requires_grad_()
    weight = (scale * torch.randn(V, D, generator=generator)).to(dtype).requires_grad_()
    targets = torch.randint(0, V, (N,), generator=generator)
    targets[::7] = -100
    return hidden, weight, targets


def gradients(loss: Tensor, *tensors: Tensor) -> list[Tensor]:
    return [grad.double() for grad in torch.autograd.grad(loss, tensors)]


def relative(got: Tensor, wanted: Tensor) -> float:
    got, wanted = got.detach().double(), wanted.detach().double()
    return float((got - wanted).abs().max() / wanted.abs().max())


TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 2e-6,
    torch.bfloat16: 2e-2,
    torch.float16: 2e-3,
}


@pytest.mark.parametrize("chunk", [None, 64 * V])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equals_cross_entropy(dtype: torch.dtype, reduction: Any, chunk: int | None) -> None:
    hidden, weight, targets = inputs(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    wanted = F.cross_entropy(F.linear(hidden, weight).to(wide), targets, reduction=reduction)
    got = linear_cross_entropy(hidden, weight, targets, reduction=reduction, chunk_elements=chunk)
    assert got.dtype == wide
    assert relative(got, wanted) < min(TOLERANCE[dtype], 2e-6)
    for mine, theirs in zip(
        gradients(got, hidden, weight), gradients(wanted, hidden, weight), strict=True
    ):
        assert relative(mine, theirs) < TOLERANCE[dtype]


def test_twin_a_wrong_target_is_seen() -> None:
    hidden, weight, targets = inputs(torch.float64)
    other = targets.clone()
    other[1] = (other[1] + 1) % V
    right, wrong = (linear_cross_entropy(hidden, weight, t) for t in (targets, other))
    assert relative(wrong, right) > 1e-4
    assert relative(gradients(wrong, weight)[0], gradients(right, weight)[0]) > 1e-3


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 200),
    vocabulary=st.integers(2, 300),
    chunk=st.integers(1, 30_000),
    seed=st.integers(0, 9),
)
def test_any_shape_and_chunk(rows: int, vocabulary: int, chunk: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 8, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(vocabulary, 8, generator=generator, dtype=torch.float64).requires_grad_()
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    wanted = F.cross_entropy(hidden @ weight.t(), targets)
    got = linear_cross_entropy(hidden, weight, targets, chunk_elements=chunk)
    torch.testing.assert_close(got, wanted)
    for mine, theirs in zip(
        gradients(got, hidden, weight), gradients(wanted, hidden, weight), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_token_weights(reduction: Any) -> None:
    hidden, weight, targets = inputs(torch.float64)
    factors = torch.linspace(0, 2, N, dtype=torch.float64)
    each = F.cross_entropy(hidden @ weight.t(), targets, reduction="none") * factors
    wanted = each.sum() if reduction == "sum" else each.sum() / factors[targets != -100].sum()
    got = linear_cross_entropy(hidden, weight, targets, weights=factors, reduction=reduction)
    torch.testing.assert_close(got, wanted)
    for mine, theirs in zip(
        gradients(got, hidden, weight), gradients(wanted, hidden, weight), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_no_valid_token(reduction: Any) -> None:
    hidden, weight, targets = inputs(torch.float32)
    got = linear_cross_entropy(hidden, weight, torch.full_like(targets, -100), reduction=reduction)
    assert got == 0
    assert all((grad == 0).all() for grad in gradients(got, hidden, weight))


@pytest.mark.parametrize("wanted", ["hidden", "weight"])
def test_gradient_of_one_only(wanted: str) -> None:
    hidden, weight, targets = inputs(torch.float64)
    both = gradients(linear_cross_entropy(hidden, weight, targets), hidden, weight)
    other = {"hidden": weight, "weight": hidden}[wanted]
    other.requires_grad_(False)
    kept = {"hidden": hidden, "weight": weight}[wanted]
    alone = gradients(linear_cross_entropy(hidden, weight, targets), kept)[0]
    assert torch.equal(alone, both[0 if wanted == "hidden" else 1])


class Products(TorchDispatchMode):
    """Counts matrix products and the largest result of any operation."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.count += func is torch.ops.aten.mm.default or func is torch.ops.aten.mm.out
        if isinstance(out, Tensor):
            self.largest = max(self.largest, out.numel())
        return out


def test_without_gradients_only_the_logits_are_made() -> None:
    hidden, weight, targets = inputs(torch.float32)
    with torch.no_grad(), Products() as counted:
        linear_cross_entropy(hidden, weight, targets, chunk_elements=64 * V)
    assert counted.count == 3  # 150 rows in chunks of 64
    with Products() as counted:
        linear_cross_entropy(hidden, weight, targets, chunk_elements=64 * V).backward()
    assert counted.count == 9


def test_no_tensor_holds_the_logits_of_all_tokens() -> None:
    hidden, weight, targets = inputs(torch.bfloat16)
    with Products() as counted:
        linear_cross_entropy(hidden, weight, targets, chunk_elements=64 * V).backward()
    assert counted.largest <= 64 * V < N * V


def test_a_large_offset_does_not_swallow_the_loss() -> None:
    hidden, weight, targets = inputs(torch.float32)
    tall = torch.cat((hidden, torch.full((N, 1), 1e4)), 1).detach()
    wide = torch.cat((weight, torch.ones(V, 1)), 1).detach()
    wanted = F.cross_entropy(tall @ wide.t(), targets)
    torch.testing.assert_close(linear_cross_entropy(tall, wide, targets), wanted, rtol=1e-6, atol=0)


def fp16_error(monkeypatch: pytest.MonkeyPatch | None) -> float:
    """Error of an fp16 weight gradient under a loss scale, over rows that are no one's target."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(64, 16, generator=generator).half()
    weight = (0.01 * torch.randn(40_000, 16, generator=generator)).half().requires_grad_()
    targets = torch.arange(64)
    if monkeypatch is not None:
        monkeypatch.setattr(module, "_stretch", lambda *_: torch.tensor(2.0**-8))
    got = linear_cross_entropy(hidden, weight, targets) * 2**14
    wide = weight.detach().float().requires_grad_()
    wanted = F.cross_entropy(hidden.float() @ wide.t(), targets) * 2**14
    return relative(gradients(got, weight)[0][64:], gradients(wanted, wide)[0][64:])


def test_fp16_gradients_do_not_underflow_before_the_loss_scale() -> None:
    assert fp16_error(None) < 1e-2


def test_twin_fp16_gradients_underflow_when_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fp16_error(monkeypatch) > 1e-1


def test_fp16_products_do_not_overflow() -> None:
    hidden = torch.full((512, 16), 40.0).half().requires_grad_()
    weight = torch.zeros(64, 16).half().requires_grad_()
    got = linear_cross_entropy(hidden, weight, torch.zeros(512, dtype=torch.int64))
    assert all(grad.isfinite().all() for grad in gradients(got, hidden, weight))


def test_backward_twice() -> None:
    hidden, weight, targets = inputs(torch.float32)
    got = linear_cross_entropy(hidden, weight, targets)
    first = torch.autograd.grad(got, (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(got, (hidden, weight))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_autocast() -> None:
    hidden, weight, targets = inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = F.cross_entropy(F.linear(hidden, weight).float(), targets)
        got = linear_cross_entropy(hidden, weight, targets)
    assert relative(got, wanted) < 1e-6
    for mine, tensor in zip(torch.autograd.grad(got, (hidden, weight)), (hidden, weight)):  # noqa: B905
        assert mine.dtype == tensor.dtype


def test_each_token_without_gradients() -> None:
    hidden, weight, targets = inputs(torch.float64)
    with torch.no_grad():
        got = linear_cross_entropy(hidden, weight, targets, reduction="none")
        wanted = F.cross_entropy(hidden @ weight.t(), targets, reduction="none")
    torch.testing.assert_close(got, wanted)


def test_each_token_with_gradients_is_refused() -> None:
    hidden, weight, targets = inputs(torch.float64)
    with pytest.raises(ModelError, match='reduction "none" has no gradient') as caught:
        linear_cross_entropy(hidden, weight, targets, reduction="none")
    assert "loss_weights" in caught.value.remedy


@pytest.mark.parametrize("label", [-1, V, -101])
def test_label_outside_the_vocabulary(label: int) -> None:
    hidden, weight, targets = inputs(torch.float32)
    targets[3] = label
    with pytest.raises(ModelError, match=f"outside the vocabulary of {V} tokens") as caught:
        linear_cross_entropy(hidden, weight, targets)
    assert caught.value.where == "labels"
    assert "-100" in caught.value.remedy


def test_head_shifts_labels_and_their_weights() -> None:
    head = LMHead(D, V, bias=False).double()
    torch.nn.init.normal_(head.weight)
    hidden = torch.randn(2, 9, D, dtype=torch.float64)
    labels = torch.randint(0, V, (2, 9))
    factors = torch.rand(2, 9, dtype=torch.float64)
    with torch.no_grad():
        each = F.cross_entropy(
            head(hidden)[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none"
        )
        got = head(hidden, labels, factors, "sum")
        torch.testing.assert_close(got, (each * factors[:, 1:].flatten()).sum())
        alone = head(hidden, labels, None, "none")
    torch.testing.assert_close(alone[:, :-1].flatten(), each)
    assert (alone[:, -1] == 0).all()


def test_the_upstream_gradient_is_not_rounded() -> None:
    """1 / 3 in bf16 is 0.1 % off, which would be a factor on all of a model's gradients."""
    hidden, weight, targets = inputs(torch.bfloat16)
    whole = linear_cross_entropy(hidden, weight, targets, reduction="sum")
    plain = torch.autograd.grad(whole, (hidden, weight), retain_graph=True)
    third = torch.autograd.grad(whole / 3, (hidden, weight))
    for a, b in zip(plain, third, strict=True):
        ratio = (a.double() / b.double())[b != 0]
        assert ratio.mean().item() == pytest.approx(3, rel=3e-4)
