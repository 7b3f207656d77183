"""LM head and cross entropy in one, without the logits of the whole vocabulary.

HF's loss holds N x V logits in the training dtype, their fp32 copy, its log-softmax and two
gradients: at N = 2048, V = 32000 that is 0.9 GB beside a 0.12 GB model. Here the vocabulary goes by
in blocks. The forward pass keeps each token's running maximum and sum (Milakov and Gimelshein
2018); the backward pass computes each block's logits a second time, so that every row of the weight
gradient is one product over all tokens, rounded once, and no gradient exists before it is scaled
(in fp16 it would underflow).

What DeepSpeed 0.19.8 ships was read first:

    runtime/chunked_cross_entropy.py        takes logits, so all N x V of them and their gradient
                                            exist in the training dtype; serves a foreign model
    sequence/linear_cross_entropy.py        the same idea as here, for a vocabulary-parallel weight;
                                            multiplies in fp32 where mixed products are missing
                                            (CPU), asks for target sanity with a device sync
    runtime/sequence_parallel/ulysses_sp.py TiledFusedLogitsLoss: runs backward inside forward, so
                                            gradients accumulate across tiles in the weight's
                                            dtype, before loss scaling; no per-token weights

The second is the one for tensor parallelism, where the zero room may put it in this one's place;
this package's model imports torch alone.

Legend: B batch, T tokens, N = B T, D model, V vocabulary, v a block of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ds_llama.errors import ModelError
from ds_llama.model.linear import Linear

IGNORE_INDEX = -100
Reduction = Literal["mean", "sum", "none"]
# A block of logits has this many elements, or as many as the hidden states if those are more.
BLOCK_ELEMENTS = 2**22


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
    block_elements: int | None = None,
) -> Tensor:
    """`F.cross_entropy((hidden @ weight.T).float(), targets)`, and its gradients.

    hidden (..., D), targets int64 (...), weights (...) or None: a factor for every token's loss.
    Returns fp32 (fp64 for fp64 inputs): "none" gives (...) with 0 where ignored; "sum" the sum;
    "mean" the sum over the valid tokens' weights (their number without weights), and 0 when no
    token is valid, where torch gives NaN: a batch without labels must not spoil a run.
    Raises ModelError for a target outside the vocabulary.
    """
    flat_N = targets.reshape(-1)
    _check_targets(flat_N, weight_VD.shape[0], ignore_index)
    device = hidden.device.type
    dtype = torch.promote_types(hidden.dtype, weight_VD.dtype)
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    hidden_ND = hidden.reshape(-1, hidden.shape[-1])
    block = _block_size(hidden_ND, weight_VD, block_elements)
    with torch.autocast(device, enabled=False):
        losses_N = _LinearCrossEntropy.apply(
            hidden_ND, weight_VD, flat_N, ignore_index, dtype, block
        )
    if weights is not None:
        losses_N = losses_N * weights.reshape(-1)
    if reduction == "none":
        return losses_N.view(targets.shape)
    if reduction == "sum":
        return losses_N.sum()
    valid_N = (flat_N != ignore_index).to(losses_N.dtype)
    total = valid_N.sum() if weights is None else (valid_N * weights.reshape(-1)).sum()
    return losses_N.sum() / torch.where(total == 0, 1, total)


class _LinearCrossEntropy(torch.autograd.Function):
    """Per-token cross entropy (N,) in the accumulation dtype, 0 where the target is ignored."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        target_N: Tensor,
        ignore_index: int,
        dtype: torch.dtype,
        block: int,
    ) -> Tensor:
        wide = torch.promote_types(dtype, torch.float32)
        x_ND = hidden_ND.to(dtype)
        top_N = x_ND.new_full((x_ND.shape[0],), -torch.inf, dtype=wide)
        sum_N, picked_N = torch.zeros_like(top_N), torch.zeros_like(top_N)
        for start, weight_vD in _blocks(weight_VD, block):
            logits_Nv = (x_ND @ weight_vD.to(dtype).t()).to(wide)
            index_N, inside_N = _within(target_N, start, weight_vD.shape[0])
            found_N = logits_Nv.gather(1, index_N[:, None]).squeeze(1)
            picked_N = torch.where(inside_N, found_N, picked_N)
            before_N, top_N = top_N, torch.maximum(top_N, logits_Nv.amax(1))
            exp_Nv = logits_Nv.sub_(top_N[:, None]).exp_()
            sum_N = sum_N * (before_N - top_N).exp_() + exp_Nv.sum(1)
        ctx.save_for_backward(hidden_ND, weight_VD, target_N, top_N, sum_N)
        ctx.ignore_index, ctx.dtype, ctx.block = ignore_index, dtype, block
        # The maximum stays apart from the logarithm: a large offset would swallow the latter.
        loss_N = sum_N.log() - (picked_N - top_N)
        return loss_N.masked_fill_(target_N == ignore_index, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        """With p the softmax and g the gradient by the logits, g = (p - onehot) * grad."""
        hidden_ND, weight_VD, target_N, top_N, sum_N = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        dtype, wide = ctx.dtype, top_N.dtype
        x_ND = hidden_ND.to(dtype)
        grad_N = grad_N.masked_fill(target_N == ctx.ignore_index, 0)
        scale_N1 = (grad_N / sum_N)[:, None]
        # Partial sums over the blocks; in the training dtype the later ones would be rounded away.
        grad_hidden = torch.zeros_like(x_ND, dtype=wide) if needs_hidden else None
        grad_weight = torch.empty_like(weight_VD) if needs_weight else None
        for start, weight_vD in _blocks(weight_VD, ctx.block):
            weight_vD = weight_vD.to(dtype)
            g_Nv = (x_ND @ weight_vD.t()).to(wide).sub_(top_N[:, None]).exp_().mul_(scale_N1)
            index_N, inside_N = _within(target_N, start, weight_vD.shape[0])
            g_Nv.scatter_add_(1, index_N[:, None], torch.where(inside_N, -grad_N, 0)[:, None])
            g_Nv = g_Nv.to(dtype)
            if grad_weight is not None:
                grad_weight[start : start + weight_vD.shape[0]] = g_Nv.t() @ x_ND
            if grad_hidden is not None:
                grad_hidden += g_Nv @ weight_vD
        if grad_hidden is not None:
            grad_hidden = grad_hidden.to(hidden_ND.dtype)
        return grad_hidden, grad_weight, None, None, None, None


def _blocks(weight_VD: Tensor, block: int) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows) of each block of the vocabulary."""
    for start in range(0, weight_VD.shape[0], block):
        yield start, weight_VD[start : start + block]


def _within(target_N: Tensor, start: int, size: int) -> tuple[Tensor, Tensor]:
    """Column of each target in a block, and whether it is there at all (else the column is 0)."""
    index_N = target_N - start
    inside_N = (index_N >= 0) & (index_N < size)
    return torch.where(inside_N, index_N, 0), inside_N


def _block_size(hidden_ND: Tensor, weight_VD: Tensor, elements: int | None) -> int:
    """Rows of the vocabulary in a block: a multiple of 64, which matrix units like."""
    tokens = max(hidden_ND.shape[0], 1)
    size = (elements or max(BLOCK_ELEMENTS, hidden_ND.numel())) // tokens
    return min(max(size // 64 * 64, 64), weight_VD.shape[0])


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
