"""RMSNorm (Zhang and Sennrich 2019), computed in at least fp32.

Hugging Face's version keeps the fp32 copy of its input, its square and the normalised value for the
backward pass. This one keeps its input, which the residual stream holds anyway, and one number per
token; the backward pass multiplies again.

Legend: x_ND is (..., D); r_N1 is 1 / rms of each token, in the accumulation dtype.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        wide_ND = x_ND.to(torch.promote_types(x_ND.dtype, torch.float32))
        r_N1 = wide_ND.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x_ND, weight_D, r_N1)
        # Rounded before the weight is applied, as in Hugging Face's LlamaRMSNorm.
        return weight_D * (wide_ND * r_N1).to(x_ND.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """With u = x r: dw = sum of g u; dx = r (g w - u mean(g w u))."""
        x_ND, weight_D, r_N1 = ctx.saved_tensors
        unit_ND = x_ND * r_N1
        grad_x = grad_weight = None
        product_ND = unit_ND * grad_ND
        if ctx.needs_input_grad[1]:
            grad_weight = product_ND.flatten(0, -2).sum(0).to(weight_D.dtype)
        if ctx.needs_input_grad[0]:
            mean_N1 = product_ND.mul_(weight_D).mean(-1, keepdim=True)
            inner_ND = torch.mul(grad_ND.to(unit_ND.dtype), weight_D, out=product_ND)
            grad_x = inner_ND.sub_(unit_ND.mul_(mean_N1)).mul_(r_N1).to(x_ND.dtype)
        return grad_x, grad_weight, None


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension; the result has the dtype of x times weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x_BTD: Tensor) -> Tensor:
        return _RMSNorm.apply(x_BTD, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"
