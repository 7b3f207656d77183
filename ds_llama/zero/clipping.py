"""Clipping by value and by group, which DeepSpeed does not have, on the averaged gradient.

    last backward ──> before_update ──────────> inner optimizer, once for each flat partition
                      norm of each row: one     fp32, without loss scale: clamp, or times the
                      all-reduce for all        row's min(1, largest norm / (norm + 1e-6))

Both hang on the engine, so a loop of one's own has them too. What DeepSpeed measures and checks
comes before: `grad_norm` is the norm before clipping, and an update that it skips for a gradient
that is not finite is skipped still. Only stage 0 has no such check, and there a gradient that is
not finite is left as it is, for clamping would make an ordinary number of an overflow.

Clipping by one global norm is DeepSpeed's own (`gradient_clipping`) and is not touched here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ds_llama.config.optimizer import OptimizerConfig
from ds_llama.zero import engine as engines
from ds_llama.zero import pieces, world

_EPS = 1e-6  # torch.nn.utils.clip_grad_norm_'s and DeepSpeed's


class Clipping:
    """The clipping of one engine by value, by group, or both ways off.

    rows: name of each parameter -> index of its row of `optimizer.groups`, or None.
    `coefficient`: after an update, the smallest of the rows' factors; None when none is clipped by
    its norm.
    """

    def __init__(self, section: OptimizerConfig, rows: dict[str, int | None]) -> None:
        self._value = section.clip_value
        limits = [row.gradient_clipping for row in section.groups]
        self._clipped = [index for index, limit in enumerate(limits) if limit is not None]
        self._limits = [limit for limit in limits if limit is not None]
        self._rows = rows
        self._factors: dict[int, torch.Tensor] = {}
        self._whole = True

    @property
    def coefficient(self) -> float | None:
        """The smallest factor of the last update."""
        return min((float(factor) for factor in self._factors.values()), default=None)

    def install(self, engine: Any) -> None:
        """Hang on the engine and on the optimizers inside it."""
        if self._clipped:
            engines.before_update(engine, self._measure)
        elif self._value is not None and engine.zero_optimization_stage() == 0:
            engines.before_update(engine, self._look)
        for optimizer in engines.inner_optimizers(engine):
            if self._value is not None or self._clipped:
                optimizer.register_step_pre_hook(self._clip)

    def _look(self, engine: Any) -> None:
        self._whole = bool(torch.isfinite(engines.gradient_norm(engine)))

    def _measure(self, engine: Any) -> None:
        """The norm of every clipped row's gradient, over all ranks."""
        squares = torch.zeros(len(self._clipped), dtype=torch.float32, device=world.device())
        place = {row: index for index, row in enumerate(self._clipped)}
        for name, norm in _norms(engine):
            index = place.get(self._rows[name])
            if index is not None:
                squares[index] += norm.to(squares.device).square()
        torch.distributed.all_reduce(squares)
        norms = squares.sqrt() / (engines.loss_scale(engine) or 1.0)
        limits = torch.tensor(self._limits, device=norms.device)
        factors = (limits / (norms + _EPS)).clamp(max=1.0)
        self._factors = dict(zip(self._clipped, factors.unbind(), strict=True))

    def _clip(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            factor = self._factors.get(group["row"])
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if factor is not None:
                    parameter.grad.mul_(factor.to(parameter.grad.device))
                if self._value is not None and self._whole:
                    parameter.grad.clamp_(-self._value, self._value)


def _norms(engine: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and the fp32 norms of what this rank holds of their gradients; a copy is rank 0's.

    What goes to NVMe is there already: DeepSpeed took its norm when it left (stage3.py:1446).
    """
    if engine.ds_llama.resolved.offload_optimizer == "nvme":
        optimizer = engine.optimizer
        for name, parameter in engine.module.named_parameters():
            norm = optimizer.norm_for_param_grads.get(optimizer.get_param_id(parameter))
            if norm is not None:
                yield name, norm.float()
        return
    for piece in pieces.gradients(engine):
        if not piece.replicated or world.rank() == 0:
            yield piece.name, torch.linalg.vector_norm(piece.flat, dtype=torch.float32)
