"""LM head and cross entropy in one, without the logits of all tokens.

HF's loss holds N x V logits in the training dtype, their fp32 copy, its log-softmax and two
gradients: at N = 2048, V = 32000 that is 0.9 GB beside a 0.12 GB model. Here the tokens go by in
chunks of rows. Each chunk's logits become their own gradient in place, and give their part of the
two products that the backward pass needs, which then only scales them:

    x (R, D) ── W ──> logits (R, V) ── fp32, 64 rows at a time ──> loss (R,)
                          │ softmax - onehot, written over the logits
                          ├── W ──> dx (R, D)
                          └── x ──> dW (V, D), summed over the chunks in fp32

The other order, blocks of the vocabulary with a running maximum and sum (Milakov and Gimelshein
2018) and the logits computed again in the backward pass, was built and measured too. It saves the
fp32 dW (4 V D bytes) and costs a fourth product with W. At that shape, D = 512, bf16, on one core:
1.55 s against 1.12 s (HF 1.74 s), and 419 MB against 466 MB at the peak of a step of 8 layers.

Nothing may be lost by scaling late: dW is summed in fp32, and in fp16, where a small probability
would underflow before the loss scale is applied, the gradient is stretched by a power of two that
cannot overflow either product.

What DeepSpeed 0.19.8 ships was read first:

    runtime/chunked_cross_entropy.py        takes logits, so all N x V of them and their gradient
                                            exist in the training dtype; serves a foreign model
    sequence/linear_cross_entropy.py        blocks of the vocabulary, recomputed as above; for a
                                            vocabulary-parallel weight; where the device lacks mixed
                                            products (CPU) it multiplies in fp32
    runtime/sequence_parallel/ulysses_sp.py TiledFusedLogitsLoss: as here, gradients in the forward
                                            pass, but summed over the tiles in the weight's own
                                            dtype, before loss scaling, and without token weights

The second is the one for tensor parallelism, where the zero room may put it in this one's place;
this package's model imports torch alone.

Legend: B batch, T tokens, N = B T, R rows of a chunk, D model, V vocabulary, v a block of it.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ds_llama.errors import ModelError
from ds_llama.model.linear import Linear

IGNORE_INDEX = -100
Reduction = Literal["mean", "sum", "none"]
# Elements of a chunk of logits, and of the part of it that is in fp32 at a time, elsewhere and (the
# second number) on a CPU, where a tile is to stay in its caches.
_CHUNK_ELEMENTS = (2**27, 2**25)
_TILE_ELEMENTS = (2**24, 2**18)
# Rows of the weight whose gradient is worked on at a time.
_BLOCK = 4096


class LMHead(Linear):
    """Logits, or with labels their cross entropy; the only place that reads the head's weight."""

    def forward(  # type: ignore[override]
        self,
        x_BTD: Tensor,
        labels_BT: Tensor | None = None,
        loss_weights_BT: Tensor | None = None,
        reduction: Reduction = "mean",
    ) -> Tensor:
        if labels_BT is None:
            return F.linear(x_BTD, self.weight, self.bias)
        targets_BT = shifted(labels_BT, IGNORE_INDEX)
        if loss_weights_BT is not None:
            loss_weights_BT = shifted(loss_weights_BT, 0)
        return linear_cross_entropy(
            x_BTD, self.weight, targets_BT, weights=loss_weights_BT, reduction=reduction
        )


def shifted(labels_BT: Tensor, fill: int) -> Tensor:
    """What each position predicts: the label of the next one, `fill` at the end."""
    return F.pad(labels_BT[..., 1:], (0, 1), value=fill)


def linear_cross_entropy(
    hidden: Tensor,
    weight_VD: Tensor,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
    ignore_index: int = IGNORE_INDEX,
    chunk_elements: int | None = None,
) -> Tensor:
    """`F.cross_entropy((hidden @ weight.T).float(), targets)`, and its gradients.

    hidden (..., D), targets int64 (...), weights (...) or None: a factor for every token's loss.
    Returns fp32 (fp64 for fp64 inputs): "sum" gives the sum; "mean" the sum over the valid tokens'
    weights (their number without weights), and 0 when no token is valid, where torch gives NaN: a
    batch without labels must not spoil a run; "none" gives (...), 0 where ignored, and has no
    gradient. Raises ModelError for a target outside the vocabulary, and for gradients of "none".
    """
    target_N = targets.reshape(-1)
    _check_targets(target_N, weight_VD.shape[0], ignore_index)
    device = hidden.device.type
    dtype = torch.promote_types(hidden.dtype, weight_VD.dtype)
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    factor_N = (target_N != ignore_index).to(torch.promote_types(dtype, torch.float32))
    if weights is not None:
        factor_N = factor_N * weights.detach().reshape(-1)
    if reduction == "mean":
        # Before the gradients are rounded, so that a plain mean is not rounded again by its count.
        count = factor_N.sum()
        factor_N = factor_N / torch.where(count == 0, 1, count)
    x_ND = hidden.reshape(-1, hidden.shape[-1])
    rows = _rows(chunk_elements or _CHUNK_ELEMENTS[device == "cpu"], x_ND, weight_VD)
    training = torch.is_grad_enabled() and (hidden.requires_grad or weight_VD.requires_grad)
    if reduction == "none":
        _refuse_gradient(training)
    with torch.autocast(device, enabled=False):
        total, loss_N = _LinearCrossEntropy.apply(
            x_ND, weight_VD, target_N, factor_N, dtype, rows, training
        )
    return loss_N.view(targets.shape) if reduction == "none" else total


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of the weighted cross entropies, and each of them; the first has gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        weight_VD: Tensor,
        target_N: Tensor,
        factor_N: Tensor,
        dtype: torch.dtype,
        rows: int,
        training: bool,
    ) -> tuple[Tensor, Tensor]:
        x, weight = x_ND.to(dtype), weight_VD.to(dtype)
        needs_x, needs_weight = (training and need for need in ctx.needs_input_grad[:2])
        stretch = None
        if training and dtype == torch.float16:
            stretch = _stretch(x, weight, factor_N, rows)
        grad_x = torch.empty_like(x) if needs_x else None
        # The sum of two bf16 products has the same bits whether rounded at once or after fp32.
        narrow = dtype == torch.bfloat16 and x.shape[0] <= 2 * rows
        sum_dtype = dtype if narrow else factor_N.dtype
        grad_weight = torch.empty_like(weight, dtype=sum_dtype) if needs_weight else None
        loss_N = torch.empty_like(factor_N)
        # One buffer for all chunks: giving it back and taking it again would cost page faults.
        buffer = x.new_empty(rows, weight.shape[0])
        for start in range(0, x.shape[0], rows):
            chunk = slice(start, start + rows)
            logits_RV = torch.mm(x[chunk], weight.t(), out=buffer[: x.shape[0] - start])
            scale_R = factor_N[chunk] if stretch is None else factor_N[chunk] * stretch
            loss_N[chunk] = _loss_(logits_RV, target_N[chunk], scale_R if training else None)
            if grad_x is not None:
                torch.mm(logits_RV, weight, out=grad_x[chunk])
            if grad_weight is not None:
                _add_product(grad_weight, logits_RV, x[chunk], first=start == 0)
        loss_N *= factor_N
        ctx.save_for_backward(grad_x, grad_weight, stretch)
        ctx.dtypes = x_ND.dtype, weight_VD.dtype
        ctx.mark_non_differentiable(loss_N)
        return loss_N.sum(), loss_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight, stretch = ctx.saved_tensors
        scale = grad if stretch is None else grad / stretch
        x_dtype, weight_dtype = ctx.dtypes
        grad_x = None if grad_x is None else _scaled(grad_x, scale, x_dtype)
        grad_weight = None if grad_weight is None else _scaled(grad_weight, scale, weight_dtype)
        return grad_x, grad_weight, None, None, None, None, None


def _loss_(logits_RV: Tensor, target_R: Tensor, scale_R: Tensor | None) -> Tensor:
    """Cross entropy (R,) in fp32 or wider; with `scale_R` the logits become its scaled gradient.

    The loss is top - picked - log p(top): the maximum stays apart from the logarithm, which a
    large offset would swallow, and no probability that may underflow is taken a logarithm of.
    """
    wide = torch.promote_types(logits_RV.dtype, torch.float32)
    tile = max(_TILE_ELEMENTS[logits_RV.device.type == "cpu"] // logits_RV.shape[1], 1)
    wide_buffer, p_buffer = (torch.empty_like(logits_RV[:tile], dtype=wide) for _ in range(2))
    losses = []
    for start in range(0, logits_RV.shape[0], tile):
        part = slice(start, start + tile)
        index_r1 = target_R[part].clamp(min=0)[:, None]
        logits_rV = wide_buffer[: len(index_r1)].copy_(logits_RV[part])
        p_rV = torch.softmax(logits_rV, 1, out=p_buffer[: len(index_r1)])
        gap_r = logits_rV.amax(1) - logits_rV.gather(1, index_r1).squeeze(1)
        losses.append(gap_r - p_rV.amax(1).log_())
        if scale_R is not None:
            p_rV.scatter_add_(1, index_r1, -torch.ones_like(p_rV[:, :1]))
            logits_RV[part] = p_rV.mul_(scale_R[part, None])
    return torch.cat(losses)


def _add_product(sum_VD: Tensor, grad_RV: Tensor, x_RD: Tensor, *, first: bool) -> None:
    """sum += grad.T @ x, block by block: each product in the training dtype, the sum in fp32.

    In the training dtype the sum would swallow the later chunks' parts, unless there are two only.
    """
    for grad_Rv, sum_vD in zip(grad_RV.split(_BLOCK, 1), sum_VD.split(_BLOCK), strict=True):
        if first and sum_vD.dtype == x_RD.dtype:
            torch.mm(grad_Rv.t(), x_RD, out=sum_vD)
        elif first:
            sum_vD.copy_(grad_Rv.t() @ x_RD)
        else:
            sum_vD.add_((grad_Rv.t() @ x_RD).to(sum_vD.dtype))


def _scaled(tensor: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """tensor * scale in `dtype`, multiplied in fp32 or wider without a whole copy in it.

    A scale of no dimensions would else be rounded to the tensor's dtype first.
    """
    out = torch.empty_like(tensor, dtype=dtype)
    for source, target in zip(tensor.split(_BLOCK), out.split(_BLOCK), strict=True):
        target.copy_(source.to(scale.dtype) * scale)
    return out


def _stretch(x_ND: Tensor, weight_VD: Tensor, factor_N: Tensor, rows: int) -> Tensor:
    """A power of two by which fp16 gradients may grow: a chunk's products stay below 2^15.

    A row of (softmax - onehot) has a sum of absolute values of at most 2, an element at most 1.
    """
    products = torch.maximum(rows * x_ND.abs().amax().float(), 2 * weight_VD.abs().amax().float())
    return torch.exp2((15 - (products * factor_N.abs().amax()).clamp(min=1).log2()).floor())


def _rows(elements: int, x_ND: Tensor, weight_VD: Tensor) -> int:
    """Rows of a chunk: a multiple of 64, which matrix units like, and no more than there are."""
    return max(min(max(elements // weight_VD.shape[0] // 64 * 64, 64), x_ND.shape[0]), 1)


def _refuse_gradient(training: bool) -> None:
    if training:
        raise ModelError(
            'reduction "none" has no gradient: the products are made before it is known',
            where="reduction",
            remedy="weigh the tokens by loss_weights, or call under torch.no_grad()",
        )


def _check_targets(target_N: Tensor, vocabulary: int, ignore_index: int) -> None:
    inside_N = (target_N >= 0) & (target_N < vocabulary) | (target_N == ignore_index)
    message = f"a label is outside the vocabulary of {vocabulary} tokens"
    try:
        # On CUDA the kernel asserts, without a stop for the host.
        torch._assert_async(inside_N.all(), message)
    except RuntimeError as error:
        raise ModelError(
            message,
            where="labels",
            remedy=f"take a tokenizer of at most {vocabulary} tokens, or {ignore_index} to ignore",
        ) from error
