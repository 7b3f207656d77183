"""The same global batch, split 1x4, 2x2 and 4x1 over ranks and micro-batches: the same gradient."""

from __future__ import annotations

from pathlib import Path

import torch
from deepspeed.utils import safe_get_full_grad

from ds_llama.trainer.build import construct
from ds_llama.zero import world
from ds_llama.zero.register import register
from ds_llama.zero.step import take_step
from tests.distributed.reference import Reference
from tests.distributed.runs import global_batch, make_run, split

ROWS = 4


def gradient_gap(folder: Path, stage: int, *, mean_of_means: bool = False) -> float:
    """Largest difference from the whole batch's gradient, over its largest value."""
    size = world.world_size()
    run = make_run(folder, stage=stage, micro_batch_size=1, accumulation=ROWS // size, world=size)
    batch = global_batch(3, ROWS)
    reference = Reference(construct(run, how="plain"))
    _, expected = reference.gradients([batch], world=1)
    engine = register(construct(run), run)
    seen: dict[str, torch.Tensor] = {}
    original = engine.step

    def step() -> None:
        if engine.is_gradient_accumulation_boundary():
            seen.update(
                {n: safe_get_full_grad(p).clone() for n, p in engine.module.named_parameters()}
            )
        original()

    engine.step = step
    window = split(batch, 1, world.rank(), size)
    if mean_of_means:
        for micro in window:
            engine.backward(engine(**micro).loss)
            step()
    else:
        take_step(engine, window)
    return max(
        float((seen[n] - g).abs().max() / expected[n].abs().max()) for n, g in expected.items()
    )


def same_gradient(folder: Path) -> None:
    for stage in (1, 2, 3):
        gap = gradient_gap(folder, stage)
        assert gap < 1e-5, f"stage {stage}: {gap}"


def mean_of_means_differs(folder: Path) -> None:
    assert gradient_gap(folder, 2, mean_of_means=True) > 1e-3


CELLS = {
    "same-gradient": ((1, 2, 4), same_gradient),
    "twin-mean-of-means": ((2,), mean_of_means_differs),
}
