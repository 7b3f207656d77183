"""torch's own optimizers and clipping over the gradients of the hand-written loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from tests.distributed.reference import Reference

Make = Callable[[list[dict[str, Any]]], Sequence[torch.optim.Optimizer]]
Clip = Callable[[dict[str, torch.Tensor]], None]


class Oracle:
    """fp32 masters of `model` under what `make` builds over groups of them.

    rows: patterns, each with settings of a group of its own. A group has `hidden` for matrices of
    the blocks, or for everything else. clip: changes the `.grad` of the
    masters, by name, before the update.
    """

    def __init__(
        self,
        model: nn.Module,
        make: Make,
        *,
        weight_decay: float,
        rows: Sequence[tuple[str, dict[str, Any]]] = (),
        clip: Clip | None = None,
        **reference: Any,
    ) -> None:
        self.reference = Reference(model, **reference)
        self.masters = {n: nn.Parameter(m) for n, m in self.reference.masters.items()}
        self.reference.masters = {n: m.data for n, m in self.masters.items()}
        self.clip = clip
        groups: dict[Any, dict[str, Any]] = {}
        for name, master in self.masters.items():
            row = next((i for i, (p, _) in enumerate(rows) if fnmatchcase(name, p)), None)
            decay = 0.0 if master.dim() == 1 else weight_decay
            settings = {"weight_decay": decay, **(rows[row][1] if row is not None else {})}
            hidden = ".layers." in name and master.dim() == 2
            key = (row, decay, hidden)
            group = groups.setdefault(key, {"params": [], "hidden": hidden, **settings})
            group["params"].append(master)
        self.optimizers = make(list(groups.values()))
        self.names = {id(master): name for name, master in self.masters.items()}

    def step(self, batches: list[dict[str, torch.Tensor]], world: int) -> tuple[float, float]:
        """One update; the loss per token and the gradient norm before clipping."""
        loss, gradients = self.reference.gradients(batches, world)
        for name, gradient in gradients.items():
            self.masters[name].grad = gradient
        norm = torch.nn.utils.get_total_norm(list(gradients.values()))
        if self.clip is not None:
            self.clip(self.masters)
        for optimizer in self.optimizers:
            optimizer.step()
        for name, parameter in self.reference.model.named_parameters():
            parameter.data.copy_(self.masters[name])
        return loss, float(norm)

    def adopt(self, name: str, master: torch.Tensor) -> float:
        """Go on from a given fp32 parameter; how far it is from the one that was reached here."""
        return self.reference.adopt(name, master)


class PaperLion(torch.optim.Optimizer):
    """Algorithm 2 of Chen et al. 2023, line by line."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                c = b1 * m + (1 - b1) * p.grad
                p -= group["lr"] * (torch.sign(c) + group["weight_decay"] * p)
                self.state[p]["m"] = b2 * m + (1 - b2) * p.grad
