"""SwiGLU feed-forward (Shazeer 2020): down(silu(gate(x)) * up(x)).

The product silu(gate) * up is as large as gate or up, and only `down_proj`'s weight gradient needs
it: it is computed again there instead of being kept. So that a ZeRO-3 parameter is read in its own
module only, the product and the projection live in `down_proj`'s forward together.

Legend: B batch, T tokens, D model, F feed-forward.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ds_llama.config import LlamaConfig
from ds_llama.model.linear import Linear


class _SwigluLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gate_BTF: Tensor, up_BTF: Tensor, weight_DF: Tensor, bias_D: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(gate_BTF, up_BTF, weight_DF)
        return F.linear(F.silu(gate_BTF).mul_(up_BTF), weight_DF, bias_D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor | None, ...]:
        gate_BTF, up_BTF, weight_DF = ctx.saved_tensors
        needs_gate, needs_up, needs_weight, needs_bias = ctx.needs_input_grad
        grad_gate = grad_up = grad_weight = grad_bias = None
        active_BTF = F.silu(gate_BTF)
        if needs_weight:
            product_NF = (active_BTF * up_BTF).flatten(0, -2)
            # Under autocast the forward pass ran in a narrower dtype than the weight's.
            grad_weight = (grad_BTD.flatten(0, -2).t() @ product_NF).to(weight_DF.dtype)
            del product_NF
        if needs_bias:
            grad_bias = grad_BTD.flatten(0, -2).sum(0).to(weight_DF.dtype)
        if needs_gate or needs_up:
            grad_BTF = grad_BTD @ weight_DF.to(grad_BTD.dtype)
            grad_up = active_BTF.mul_(grad_BTF)
            grad_gate = torch.ops.aten.silu_backward(grad_BTF.mul_(up_BTF), gate_BTF)
        return grad_gate, grad_up, grad_weight, grad_bias


class SwigluLinear(Linear):
    """`Linear` applied to silu(gate) * up."""

    def forward(self, gate_BTF: Tensor, up_BTF: Tensor) -> Tensor:  # type: ignore[override]
        return _SwigluLinear.apply(gate_BTF, up_BTF, self.weight, self.bias)


class MLP(nn.Module):
    """The feed-forward half of a block."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(width, inner, bias=bias)
        self.up_proj = Linear(width, inner, bias=bias)
        self.down_proj: nn.Module = SwigluLinear(inner, width, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate_BTF, up_BTF = self.gate_proj(x_BTD), self.up_proj(x_BTD)
        if isinstance(self.down_proj, SwigluLinear):
            return self.down_proj(gate_BTF, up_BTF)
        # A tensor-parallel engine has put its own row-parallel layer here, which takes one input.
        return self.down_proj(F.silu(gate_BTF) * up_BTF)
