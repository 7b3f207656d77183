"""No update from this window, whatever the stage: its gradients are forgotten, the step counts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ds_llama.zero import engine as engines
from ds_llama.zero.pieces import gradients


@contextmanager
def without_update(engine: Any) -> Iterator[None]:
    """`engine.step()` in here, on all ranks, leaves weights, masters and moments as they are.

    At stages 1 to 3 by the path of gradients that are not finite, which clears what each of
    DeepSpeed's optimizers keeps of a window. Its check is on in here, even where bf16's
    `check_grad_overflow` is false (stage_1_and_2.py:3029), and fp16's loss scale is not lowered:
    nothing was too large for it.
    """
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    checked = getattr(optimizer, "check_grad_overflow", True)
    if stage > 0:
        optimizer.check_grad_overflow = True
        optimizer._update_scale = lambda overflow=False: None

    def refuse(engine: Any) -> bool:
        discard(engine)
        return bool(stage > 0)

    engines.before_update(engine, refuse)  # the last: clipping by value makes infinities finite
    try:
        yield
    finally:
        engine.ds_llama_before_update.remove(refuse)
        if stage > 0:
            del optimizer._update_scale
            optimizer.check_grad_overflow = checked
    again = getattr(engine.ds_llama.exact, "rejected", False)  # the same window once more
    if stage == 0 and not again:
        engine.global_steps += 1
        engine.skipped_steps += 1
        engine.global_samples += engine.train_batch_size()


def discard(engine: Any) -> None:
    """Forget the window's gradients, between its last backward and its update.

    At stages 1 to 3 DeepSpeed does so itself, and skips the update, when a gradient is not finite;
    with the optimizer on the host it looks at norms that it has taken already.
    """
    if engine.zero_optimization_stage() == 0:
        engine.module.zero_grad(set_to_none=True)
        return
    for piece in gradients(engine):
        piece.flat.fill_(math.inf)
    norms = getattr(engine.optimizer, "norm_for_param_grads", {})
    for name in norms:
        norms[name] = torch.full_like(norms[name], math.inf)
