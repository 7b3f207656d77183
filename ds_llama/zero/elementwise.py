"""Lion, which torch does not have, and Adagrad in a form that ZeRO can use.

Both keep their state when it is first needed, for the flat partitions that ZeRO puts in the place
of the parameters. They need no compiled op on any device; on a host they work through a partition
in blocks that stay in the cache, so that a pass over memory is one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.optim.adagrad import adagrad

_BLOCK = {"cpu": 1 << 16, "cuda": 1 << 24}


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023, arXiv 2302.06675, algorithm 2.

    update = sign(b1 m + (1 - b1) g);  w = w - lr (update + decay w);  m = b2 m + (1 - b2) g
    """

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], weight_decay: float):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None, "ZeRO calls no closure"
        for group, parameter, state in _with_gradient(self):
            if not state:
                state["exp_avg"] = torch.zeros_like(parameter)
            b1, b2 = group["betas"]
            for weight, gradient, average in _blocks(parameter, parameter.grad, state["exp_avg"]):
                update = average.lerp(gradient, 1 - b1).sign_()
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"])
                average.lerp_(gradient, 1 - b2)


class Adagrad(torch.optim.Optimizer):
    """torch's function under another class.

    ZeRO replaces a `torch.optim.Adagrad`, and every subclass, by one whose partitions are all in
    one group with its defaults (deepspeed/runtime/zero/stage_1_and_2.py:947, stage3.py:1358): a
    second group, with another decay, is an IndexError at the first update.
    """

    def __init__(self, params: Any, lr: float, eps: float, weight_decay: float):
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None, "ZeRO calls no closure"
        for group, parameter, state in _with_gradient(self):
            if not state:
                state["sum"] = torch.zeros_like(parameter)
            adagrad(
                [parameter],
                [parameter.grad],
                [state["sum"]],
                # Counted for a decay of the learning rate, which there is none of here.
                [torch.zeros((), dtype=torch.float32, device=parameter.device)],
                fused=True,
                has_sparse_grad=False,
                has_complex=False,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                lr_decay=0.0,
                eps=group["eps"],
                maximize=False,
            )


def _with_gradient(
    optimizer: torch.optim.Optimizer,
) -> Iterator[tuple[dict[str, Any], torch.Tensor, dict[str, Any]]]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                yield group, parameter, optimizer.state[parameter]


def _blocks(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """The same elements of every tensor, a block at a time: what a step allocates is one block."""
    size = _BLOCK.get(tensors[0].device.type, 1 << 24)
    flat = [tensor.view(-1) for tensor in tensors]
    yield from zip(*(tensor.split(size) for tensor in flat), strict=True)
