"""One optimizer step over its micro-batches, with the loss per token of the whole global batch.

DeepSpeed averages gradients over micro-batches and ranks: a mean of means, in which a token in a
short micro-batch counts more than one in a full one. Here every micro-batch's loss is

    sum of its cross-entropies  x  world size / valid tokens of the whole window on all ranks

and DeepSpeed's averaging over ranks then gives the sum over the global batch divided by its tokens,
however the batch was split. The token count is known before the forward pass: one small all-reduce
per step, which also carries the ranks' wish to stop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from ds_llama.errors import DataError
from ds_llama.measure import accounting
from ds_llama.model.inputs import inputs_of
from ds_llama.zero import engine as engines
from ds_llama.zero import skipping, world

Batch = Mapping[str, torch.Tensor]
Judge = Callable[[float, float | None], bool]
IGNORE_INDEX = -100
_STOP = 2**44  # one number is read for two: more tokens than any window has


@dataclass(frozen=True)
class StepResult:
    """What one step did. `loss` is the mean over the global batch's valid tokens, in nats.

    The norm is on the device until it is asked for, which waits for all that was begun there: to be
    asked where it is needed, and before the next step.
    """

    loss: float
    tokens: int
    applied: bool
    loss_scale: float | None
    norm: torch.Tensor | float | None = field(repr=False, compare=False)
    engine: Any = field(repr=False, compare=False)

    @cached_property
    def grad_norm(self) -> float | None:
        """Of the averaged gradient before clipping; None without an update."""
        return float(self.norm) if self.norm is not None and self.applied else None

    @cached_property
    def clip_coef(self) -> float | None:
        """What the gradient was multiplied with: min(1, clip / (norm + 1e-6)), as DeepSpeed does.

        Clipped by group: the smallest of the rows' factors. None when nothing is clipped by a norm.
        """
        own = self.engine.ds_llama.clipping
        clip = self.engine.gradient_clipping()
        if not self.applied:
            return None
        if self.grad_norm is None or not clip:
            return own.coefficient if own is not None else None
        return min(1.0, clip / (self.grad_norm + 1e-6))


def valid_tokens(batch: Batch) -> int:
    """Tokens of a micro-batch that contribute to the loss: labels shifted by one, -100 ignored."""
    return int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())


def take_step(
    engine: Any, window: Sequence[Batch], *, stop: bool = False, accept: Judge | None = None
) -> StepResult | None:
    """Forward, backward and update over one accumulation window; collective.

    window: as many micro-batches as `gradient_accumulation_steps`, each with `input_ids` and
    `labels`, int64 (B, T), and optionally `attention_mask` and `position_ids`, or the latter and
    `document_lengths` (`data.collate`), which stays where it is.
    accept: asked before the update, on every rank, with the loss of the global batch and, at
    stage 0, the norm of its gradient; there is no update if it says False.
    Returns None, on every rank and without a step, if any rank says `stop`.
    """
    tokens, stopping = _agree(sum(valid_tokens(batch) for batch in window), stop)
    if stopping:
        return None
    if tokens == 0:
        raise DataError(
            "no token of the global batch contributes to the loss",
            where="data.train",
            remedy="check that labels are not all -100 and sequences are longer than one token",
        )
    exact = engine.ds_llama.exact
    loss, norm, scale = _run(engine, window, tokens, accept)
    if exact is not None and exact.rejected:  # the gradients outgrew their units (`zero.exact`)
        loss, norm, scale = _run(engine, window, tokens, accept)
    if exact is not None:
        norm = exact.norm
    elif norm is None and not engines.orthogonalises(engine):
        norm = engine.get_global_grad_norm()
    return StepResult(
        loss=loss,
        tokens=tokens,
        applied=engine.was_step_applied(),
        loss_scale=scale,
        norm=norm,
        engine=engine,
    )


def _run(
    engine: Any, window: Sequence[Batch], tokens: int, accept: Judge | None
) -> tuple[float, torch.Tensor | float | None, float | None]:
    """One update from a window: its loss, its norm and loss scale."""
    device, losses = world.device(), []
    for number, batch in enumerate(window, start=1):
        with accounting.phase("forward"):
            inputs = inputs_of(batch, device, engine.ds_llama.traits)
            loss = _summed_loss(engine, inputs, valid_tokens(batch))
            losses.append(loss.detach().float())
        with accounting.phase("backward"):
            engine.backward(loss * (world.world_size() / tokens), scale_wrt_gas=False)
            # The graph goes with it, and what recomputed parts keep in it (checkpointing.py:582).
            del loss
        if number < len(window):
            with accounting.phase("step"):
                engines.step(engine)
    with accounting.phase("step"):
        norm: torch.Tensor | float | None = engines.gradient_norm(engine)
        mean, accepted, scale = None, True, engines.loss_scale(engine)
        if accept is not None:
            mean = _sum_over_ranks(torch.stack(losses)) / tokens
            norm = float(norm) if norm is not None else None
            accepted = accept(mean, norm)
        with nullcontext() if accepted else skipping.without_update(engine):
            engines.step(engine)
    if mean is None:
        mean = _sum_over_ranks(torch.stack(losses)) / tokens
    return mean, norm, scale


def _sum_over_ranks(losses: torch.Tensor) -> float:
    """The correctly rounded sum of every rank's losses: the same in any order of them."""
    everyones = [torch.empty_like(losses) for _ in range(world.world_size())]
    torch.distributed.all_gather(everyones, losses)
    try:
        return math.fsum(torch.cat(everyones).tolist())
    except (OverflowError, ValueError):  # infinities
        return math.nan


def _summed_loss(engine: Any, inputs: dict[str, Any], tokens: int) -> torch.Tensor:
    """Sum of the micro-batch's cross-entropies, asked for in the words of the model's traits.

    A model whose traits know no such words returns the mean over its valid tokens.
    """
    words = engine.ds_llama.traits.sum_loss
    if words is None:
        if not tokens:  # the mean over none is NaN, and NaN times nothing is no sum
            inputs = {**inputs, "labels": inputs["input_ids"]}
        return engine(**inputs).loss * tokens
    return engine(**inputs, **words).loss


def _agree(tokens: int, stop: bool) -> tuple[int, bool]:
    """Sum of the token counts, and whether any rank wants to stop."""
    both = torch.tensor([tokens + int(stop) * _STOP], dtype=torch.int64, device=world.device())
    torch.distributed.all_reduce(both)
    stopping, everyones = divmod(int(both), _STOP)
    return everyones, stopping > 0
