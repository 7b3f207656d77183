"""`train.reproducible`: sums that come out bit-equal in any order, at any stage and world size.

A floating-point sum depends on its order, and every stage and world size has an order of its own.
Sums of multiples of one power of two do not: as long as their absolute values add up to at most
2^24 such units, every partial sum is an fp32 number and nothing is ever rounded (Demmel and Nguyen
2013, "Fast reproducible floating-point summation", use the same fact).

    micro-batch gradient g ── hook ──> round(g / u) u ── DeepSpeed: any order ──> sum, exact
             │ largest |g| of the step, over all ranks: exact too
             └──> u of the next step = 2^ceil(log2 largest) x micro-batches x 2^HEADROOM / 2^24

Each parameter has its own unit u, from its largest gradient in the step before. A gradient that
grew beyond the headroom could make a sum inexact: then the window's gradients are thrown away, the
units are taken from them, and the window is run again, as is the very first one. bf16 gradients
have 8 bits, so rounding touches only those below 2^8 units; their sums are kept in fp32.

The other order-dependent sums are the norm (here: squares of integers, summed as integers) and the
loss (`zero.step`). What is no sum but differs between stages is dealt with where it is: `apply`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses

from ds_llama.config.optimizer import AdamW
from ds_llama.zero import engine as engines
from ds_llama.zero import world
from ds_llama.zero.pieces import gradients
from ds_llama.zero.skipping import discard

EXACT_BITS = 24  # integers up to 2^24 are fp32 numbers, and so are all their sums up to there
HEADROOM_BITS = 3  # how far a gradient may outgrow the step before without a second run
_SMALLEST = -100  # exponent of a unit: its quotients by the world size stay normal numbers
_CHUNK = 2**16
_LOW_BITS = 24


class ExactSums:
    """Rounds each micro-batch's gradients of an engine, and clips by the norm of their exact mean.

    `exponents`: log2 of each parameter's unit, equal on all ranks; all the state there is, and part
    of a checkpoint. `rejected`: whether the last window's gradients were thrown away and it has to
    be run again. `norm`: of the last averaged gradient, before clipping.
    """

    def __init__(self, engine: Any, micro_batches: int) -> None:
        self.exponents: dict[str, int] = {}
        self.rejected = False
        self.norm: float | None = None
        self._bits = math.ceil(math.log2(micro_batches))
        self._world = world.world_size()
        parameters = [(n, p) for n, p in engine.module.named_parameters() if p.requires_grad]
        self._names = [name for name, _ in parameters]
        self._largest = torch.zeros(len(parameters), device=world.device())
        for index, (name, parameter) in enumerate(parameters):
            parameter.register_hook(partial(self._rounded, index, name))

    def _rounded(self, index: int, name: str, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient in whole units; zero while there is no unit, since it is thrown away."""
        low, high = gradient.aminmax()
        self._largest[index] = torch.stack([self._largest[index], -low.float(), high.float()]).max()
        exponent = self.exponents.get(name)
        if exponent is None:
            return torch.zeros_like(gradient)
        # The loss is multiplied with the world size, by which DeepSpeed divides (`zero.step`).
        unit = math.ldexp(self._world, exponent)
        # + 0.0 makes -0.0 positive: which of the two a sum of nothing else is depends on its order.
        return gradient.mul(1 / unit).round_().mul_(unit).add_(0.0)

    def before_update(self, engine: Any) -> bool:
        """Decide whether the window's sums are exact, then clip, or throw them away; collective.

        False if there is to be no update, which is so at stage 0 only.
        """
        needed = self._needed_bits()
        limit = EXACT_BITS - self._bits
        self.rejected = any(
            bits is not None and bits - self.exponents.get(name, -math.inf) > limit
            for name, bits in needed.items()
        )
        if self.rejected:
            discard(engine)
        else:
            self.norm = self._norm(engine)
            self._clip(engine, self.norm)
        for name, bits in needed.items():
            if bits is not None:
                self.exponents[name] = max(bits - limit + HEADROOM_BITS, _SMALLEST)
        return not (self.rejected and engine.zero_optimization_stage() == 0)

    def _needed_bits(self) -> Mapping[str, int | None]:
        """k for each parameter, with all its gradients of this window below 2^k on every rank.

        None for one that is all zero, or not finite: that window's update is DeepSpeed's to skip.
        """
        largest = torch.nan_to_num(self._largest / self._world, nan=math.inf, posinf=math.inf)
        self._largest.zero_()
        if self._world > 1:
            torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
        found = zip(self._names, largest.tolist(), strict=True)
        return {n: math.frexp(v)[1] if 0 < v < math.inf else None for n, v in found}

    def _norm(self, engine: Any) -> float:
        """Of the averaged gradient: its elements are whole units, so are their squares."""
        index = {name: number for number, name in enumerate(self._names)}
        sums = torch.zeros(len(index), 2, dtype=torch.int64, device=world.device())
        for piece in gradients(engine):
            if piece.name in self.exponents and not (piece.replicated and world.rank()):
                unit = math.ldexp(1.0, self.exponents[piece.name])
                sums[index[piece.name]] += _squares(piece.flat, unit).to(sums.device)
        if self._world > 1:
            torch.distributed.all_reduce(sums)
        return math.sqrt(
            math.fsum(
                math.ldexp(low + (high << _LOW_BITS), 2 * self.exponents.get(name, 0))
                for name, (low, high) in zip(self._names, sums.tolist(), strict=True)
            )
        )

    def _clip(self, engine: Any, norm: float) -> None:
        clip = engine.gradient_clipping()
        factor = clip / (norm + 1e-6) if clip else 1.0
        if factor < 1.0:
            for piece in gradients(engine):
                piece.flat.mul_(factor)


def apply(engine: Any, micro_batches: int) -> ExactSums:
    """Make `engine`, as `create` returned it, train to the same bits at every stage and world size.

    micro_batches: of a window, over all ranks. Besides the sums:

    - Stage 3 replaces `F.linear` for the rest of the process, whatever `memory_efficient_linear`
      says (partition_parameters.py:1108, :419), by one whose backward pass multiplies in another
      order. Here every stage gets it.
    - DeepSpeed clips by a norm that it sums in fp32, in the order of its partitions. Its clipping
      is switched off; `before_update` does it.
    """
    # DeepSpeed's own way, which remembers torch's function; it reads nothing of its instance.
    InsertPostInitMethodToModuleSubClasses._enable_mem_efficient_linear(None)
    if hasattr(engine.optimizer, "clip_grad"):
        engine.optimizer.clip_grad = 0.0
    engine.clip_fp32_gradients = lambda: None
    if world.device().type == "cuda":
        # Read when cuBLAS is first used. A kernel that has no such form says so in a warning.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    exact = ExactSums(engine, micro_batches)
    engines.before_update(engine, exact.before_update)
    # It would say that gradients were not finite (fp16/loss_scaler.py:153).
    deepspeed.utils.logger.addFilter(
        lambda record: not (exact.rejected and "OVERFLOW" in record.getMessage())
    )
    return exact


def of(engine: Any) -> ExactSums | None:
    """What `apply` returned for this engine."""
    return getattr(getattr(engine, "ds_llama", None), "exact", None)


def adamw(section: AdamW, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """AdamW whose result for an element does not depend on where a rank's partition ends.

    torch's fused kernel rounds the last elements of a tensor, which do not fill a vector, otherwise
    than the rest. Used with the optimizer on the host too, in the place of `DeepSpeedCPUAdam`.
    """
    settings = {"lr": section.lr, "betas": section.betas, "eps": section.eps}
    return torch.optim.AdamW(groups, **settings, foreach=False)


def _squares(flat: torch.Tensor, unit: float) -> torch.Tensor:
    """Sum of the squares of `flat` in units, as two int64: low + high 2^24. Exact to 2^38 elements.

    A square is below 2^48, so that its two halves are below 2^24 each.
    """
    sums = torch.zeros(2, dtype=torch.int64, device=flat.device)
    for chunk in flat.split(_CHUNK):
        # A gradient that is not finite makes some number here, and is skipped by DeepSpeed.
        squares = chunk.float().mul(1 / unit).to(torch.int64).square_()
        sums[1] += (squares >> _LOW_BITS).sum()
        sums[0] += squares.bitwise_and_(2**_LOW_BITS - 1).sum()
    return sums
