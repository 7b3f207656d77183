"""RMSNorm (Zhang and Sennrich 2019), computed in at least fp32.

Hugging Face's version keeps the fp32 copy of its input, its square and the normalised value for the
backward pass. This one keeps its input, which the residual stream holds anyway, and one number per
token; the backward pass multiplies again.

Legend: x_ND is (..., D); r_N1 is 1 / rms of each token, in fp32 or wider.
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
        """With u = g x: dw = sum over tokens of u r; dx = g w r - x r^3 (u . w) / D.

        Both sums are matrix-vector products. Operands are widened first: torch is slow where the
        two of an operation differ in dtype.
        """
        x_ND, weight_D, r_N1 = ctx.saved_tensors
        wide, size = r_N1.dtype, x_ND.shape[-1]
        flat_ND, grad_ND = (t.reshape(-1, size).to(wide) for t in (x_ND, grad_ND))
        r_N1, wide_D = r_N1.view(-1, 1), weight_D.to(wide)
        product_ND = grad_ND * flat_ND
        grad_x = grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = torch.mv(product_ND.t(), r_N1.squeeze(1)).to(weight_D.dtype)
        if ctx.needs_input_grad[0]:
            along_N1 = torch.mv(product_ND, wide_D).unsqueeze(1) * r_N1.pow(3) / size
            grad_x = torch.mul(grad_ND, wide_D, out=product_ND).mul_(r_N1)
            grad_x = grad_x.addcmul_(flat_ND, along_N1, value=-1).to(x_ND.dtype).view_as(x_ND)
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
