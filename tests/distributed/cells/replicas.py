"""The replica check names the rank and the parameter of one flipped bit, and is silent without."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ds_llama.errors import RunError
from ds_llama.trainer.build import construct
from ds_llama.trainer.hooks import CheckReplicas
from ds_llama.trainer.state import TrainState
from ds_llama.zero import world
from ds_llama.zero.pieces import MASTER, WEIGHT, pieces
from ds_llama.zero.register import register
from ds_llama.zero.step import take_step
from tests.distributed.runs import global_batch, make_run, split

EVERY, MICRO = 2, 2
VICTIM = "model.layers.1.self_attn.k_proj.weight"
GATHERED = "model.layers.1.input_layernorm.weight"


def train(folder: Path, steps: int, spoil: Callable[[Any, int], None], **how: Any) -> None:
    """Steps with the hook in place; `spoil(engine, step)` runs after each step."""
    size = world.world_size()
    mode = {"micro_batch_size": MICRO, "global_batch_size": MICRO * size}
    mode |= {"steps": 9, "check_replicas_every_steps": EVERY}
    run = make_run(folder, train=mode, **how)
    engine = register(construct(run), run)
    job = SimpleNamespace(
        engine=engine, resolved=engine.ds_llama.resolved, state=TrainState(total_steps=9)
    )
    CheckReplicas().before_training(job)
    for step in range(steps):
        take_step(engine, split(global_batch(step, MICRO * size), MICRO, world.rank(), size))
        job.state.step += 1
        spoil(engine, job.state.step)


def untouched(*_: Any) -> None:
    """Spoil nothing."""


def flip(name: str, rank: int) -> Callable[[Any, int], None]:
    """Flip the lowest bit of the first element that `rank` has of a parameter, after step 1."""

    def spoil(engine: Any, step: int) -> None:
        if step == 1 and world.rank() == rank:
            piece = next(p for p in pieces(engine) if (p.name, p.kind) == (name, WEIGHT))
            width = {2: torch.int16, 4: torch.int32}[piece.flat.element_size()]
            piece.flat.view(width)[:1] ^= 1

    return spoil


def refused(folder: Path, spoil: Callable[[Any, int], None], **how: Any) -> str:
    with pytest.raises(RunError) as caught:
        train(folder, EVERY, spoil, **how)
    assert caught.value.where == f"step {EVERY} of {folder}"
    assert "resume from the last checkpoint" in caught.value.remedy
    return caught.value.what


def named_at_each_stage(folder: Path) -> None:
    """Four ranks know which of them is wrong; two do where it disowns its weights itself."""
    for stage, precision in ((0, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")):
        how = {"stage": stage, "precision": precision}
        what = refused(folder / f"{stage}", flip(VICTIM, 1), **how)
        assert VICTIM in what, what
        if world.world_size() == 4 or stage == 3:
            assert "rank 1 " in what, what
            assert not any(f"rank {other} " in what for other in (0, 2, 3)), what
        elif stage == 0:
            assert what == (
                f"the ranks have come apart: ranks 0, 1 do not have the same {VICTIM} (weight)"
            )


def named_where_it_is_gathered(folder: Path) -> None:
    def spoil(engine: Any, step: int) -> None:
        if step == 1 and world.rank() == 2:
            whole = [p for p in pieces(engine) if p.name == GATHERED and p.replicated]
            whole[0].flat[0] += 1.0  # which is in rank 0's slice

    what = refused(folder, spoil, stage=3, precision="bf16")
    assert what.endswith(f"rank 2 has another {GATHERED} (weight) than the rest"), what


def named_master(folder: Path) -> None:
    """Its sign: the lowest bits of a master are below those of its weight."""

    def spoil(engine: Any, step: int) -> None:
        if step == 1 and world.rank() == 1:
            piece = next(p for p in pieces(engine) if (p.name, p.kind) == (VICTIM, MASTER))
            piece.flat[:1] *= -1

    what = refused(folder, spoil, stage=3, precision="bf16")
    assert what == (
        f"the ranks have come apart: on rank 1 the weights of {VICTIM} are not those of its "
        "fp32 masters"
    )


def named_number(folder: Path) -> None:
    def spoil(engine: Any, step: int) -> None:
        if world.rank() == 1:
            engine.optimizer.param_groups[0]["lr"] = math.nan

    what = refused(folder, spoil, stage=2)
    assert what == "the ranks have come apart: rank 1 has another learning rate than the rest"


def silent(folder: Path) -> None:
    for stage, precision, offload in (
        (0, "fp32", "none"),
        (1, "bf16", "none"),
        (2, "bf16", "optimizer"),
        (3, "fp32", "none"),
        (3, "bf16", "all"),
    ):
        how = {"stage": stage, "precision": precision, "offload": offload}
        train(folder / f"{stage}-{precision}", 2 * EVERY, untouched, **how)


def silent_about_nan_everywhere(folder: Path) -> None:
    def spoil(engine: Any, step: int) -> None:
        for piece in pieces(engine):
            if piece.name == VICTIM:
                piece.flat.fill_(math.nan)

    train(folder, EVERY, spoil, stage=2, precision="bf16")


CELLS = {
    "flipped-bit": ((2, 4), named_at_each_stage),
    "gathered": ((4,), named_where_it_is_gathered),
    "master": ((2,), named_master),
    "number": ((4,), named_number),
    "silent": ((2,), silent),
    "silent-nan": ((2,), silent_about_nan_everywhere),
}
