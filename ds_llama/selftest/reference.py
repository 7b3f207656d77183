"""A training loop written by hand in plain torch, which every ZeRO cell is compared with.

Nothing of DeepSpeed and nothing of `ds_llama.zero` is used: one process, the whole global batch,
fp32 master weights, AdamW and clipping spelled out. Low precision is where ZeRO has it: the
weights that forward uses and the gradients that each micro-batch yields.

The loss is the model's own fused one, whose parity with torch's has tests of its own: cross entropy
over whole logits multiplies matrices of other shapes, and Adam turns the rounding of a gradient
close to zero into a visible part of the learning rate.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn


@dataclass
class Reference:
    """AdamW over fp32 masters of `model`; `lr`, `betas`, `eps` and decay as the cells set them."""

    model: nn.Module
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0
    reduce_in_half: bool = False
    loss_scale: float = 1.0
    steps: int = 0
    masters: dict[str, torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.masters = {n: p.detach().float().clone() for n, p in self.model.named_parameters()}
        self.first = {n: torch.zeros_like(m) for n, m in self.masters.items()}
        self.second = {n: torch.zeros_like(m) for n, m in self.masters.items()}

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def gradients(
        self, batches: list[dict[str, torch.Tensor]], world: int
    ) -> tuple[float, dict[str, torch.Tensor]]:
        """Loss per token of the global batch and its gradient, summed over micro-batches.

        Summed in fp32, or in the gradients' own dtype if `reduce_in_half`, as DeepSpeed does when
        it communicates in half precision: each rank's share is divided by the world first.
        """
        tokens = sum(int((b["labels"][:, 1:] != -100).sum()) for b in batches)
        total = 0.0
        summed = {n: torch.zeros_like(m) for n, m in self.masters.items()}
        for batch in batches:
            self.model.zero_grad(set_to_none=True)
            batch = {key: tensor.to(self.device) for key, tensor in batch.items()}
            loss = self.model(**batch, reduction="sum").loss
            total += loss.item()
            (loss * (world / tokens) * self.loss_scale).backward()
            for name, parameter in self.model.named_parameters():
                if self.reduce_in_half:
                    share = (parameter.grad / world).to(parameter.dtype)
                    summed[name] = (summed[name].to(parameter.dtype) + share).float()
                else:
                    summed[name] += parameter.grad.float() / world
        return total / tokens, {n: g / self.loss_scale for n, g in summed.items()}

    def gap(self, name: str, master: torch.Tensor) -> float:
        """How far a given fp32 parameter is from the one that was reached here."""
        return float((master - self.masters[name]).abs().max())

    def adopt(self, name: str, master: torch.Tensor) -> None:
        """Go on from a given fp32 parameter."""
        self.masters[name].copy_(master)
        dict(self.model.named_parameters())[name].data.copy_(master)

    def clip_coef(self, norm: float) -> float:
        """What a gradient of that norm is multiplied with."""
        return min(1.0, self.clip / (norm + 1e-6))

    def step(self, batches: list[dict[str, torch.Tensor]], world: int) -> tuple[float, float]:
        """One update; the loss per token and the gradient norm before clipping."""
        loss, gradients = self.gradients(batches, world)
        norm = float(torch.sqrt(sum((g.double() ** 2).sum() for g in gradients.values())))
        self.steps += 1
        for name, gradient in gradients.items():
            self._update(name, gradient * self.clip_coef(norm))
        return loss, norm

    def _update(self, name: str, gradient: torch.Tensor) -> None:
        (b1, b2), master = self.betas, self.masters[name]
        decay = 0.0 if master.dim() == 1 else self.weight_decay
        self.first[name].mul_(b1).add_(gradient, alpha=1 - b1)
        self.second[name].mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
        unbiased_first = self.first[name] / (1 - b1**self.steps)
        unbiased_second = self.second[name] / (1 - b2**self.steps)
        master.mul_(1 - self.lr * decay)
        master.sub_(self.lr * unbiased_first / (unbiased_second.sqrt() + self.eps))
        parameter = dict(self.model.named_parameters())[name]
        parameter.data.copy_(master)
