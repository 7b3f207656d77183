"""What this rank holds of the averaged gradient, between the last backward and the update."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from ds_llama.trainer.build import construct
from ds_llama.zero import engine as engines
from ds_llama.zero import world
from ds_llama.zero.pieces import gradients
from ds_llama.zero.register import register
from ds_llama.zero.step import take_step
from tests.distributed.reference import Reference
from tests.distributed.runs import global_batch, make_run, split

LOSS_SCALE = 2.0**10


def assembled(engine: Any) -> dict[str, torch.Tensor]:
    """The whole averaged gradient, fp32, put together from every rank's pieces."""
    whole = {
        name: torch.zeros(getattr(parameter, "ds_numel", parameter.numel()))
        for name, parameter in engine.module.named_parameters()
    }
    seen = {name: torch.zeros_like(tensor) for name, tensor in whole.items()}
    for piece in gradients(engine):
        if not piece.replicated or world.rank() == 0:
            end = piece.start + piece.flat.numel()
            whole[piece.name][piece.start : end] = piece.flat.float()
            seen[piece.name][piece.start : end] += 1
    for name in whole:
        torch.distributed.all_reduce(whole[name])
        torch.distributed.all_reduce(seen[name])
        assert bool((seen[name] == 1).all()), f"{name}: not every element is held once"
    return whole


def equal_the_averaged_gradient(
    folder: Path, *, stage: int, precision: str, offload: str, accumulation: int
) -> None:
    """Pieces put together are the reference's gradient; doubled in place, the update sees it."""
    size = world.world_size()
    run = make_run(
        folder,
        stage=stage,
        precision=precision,
        offload=offload,
        accumulation=accumulation,
        world=size,
        deepspeed={"gradient_clipping": 0.0},
    )
    reference = Reference(
        construct(run, how="plain"), reduce_in_half=precision != "fp32" and accumulation == 1
    )
    engine = register(construct(run), run)
    found: list[dict[str, torch.Tensor]] = []
    engines.before_update(engine, lambda engine: found.append(assembled(engine)))
    batch = global_batch(0, 2 * accumulation * size)
    window = split(batch, 2, world.rank(), size)
    everyones = split(batch, 2, 0, 1)
    result = take_step(engine, window)
    assert result is not None
    _, expected = reference.gradients(everyones, size)
    assert len(found) == 1
    scale = LOSS_SCALE if precision == "fp16" else 1.0
    norm = torch.sqrt(sum((g.double() ** 2).sum() for g in expected.values()))
    gap = torch.sqrt(
        sum(
            ((found[0][name] / scale - gradient.view(-1)).double() ** 2).sum()
            for name, gradient in expected.items()
        )
    )
    assert float(gap / norm) < (2e-6 if precision == "fp32" else 5e-3)


def can_be_changed_in_place(folder: Path, *, stage: int, offload: str) -> None:
    """A gradient zeroed before the update leaves its parameter where it was, decay apart."""
    size = world.world_size()
    run = make_run(folder, stage=stage, offload=offload, accumulation=2, world=size)
    run = run.model_copy(
        update={"optimizer": run.optimizer.model_copy(update={"weight_decay": 0.0})}
    )
    engine = register(construct(run), run)

    def silence(engine: Any) -> None:
        for piece in gradients(engine):
            if "norm" in piece.name:
                piece.flat.zero_()

    engines.before_update(engine, silence)
    take_step(engine, split(global_batch(0, 4 * size), 2, world.rank(), size))
    for name, parameter in engine.module.named_parameters():
        with _gathered(parameter):
            moved = not bool((parameter == 1).all())
        assert moved == ("norm" not in name), name


def _gathered(parameter: torch.nn.Parameter) -> Any:
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id"))


def _cells() -> dict[str, Any]:
    cells: dict[str, Any] = {}
    rows = [
        (0, "fp32", "none"),
        (1, "bf16", "none"),
        (2, "fp32", "none"),
        (2, "bf16", "optimizer"),
        (2, "fp16", "none"),
        (3, "bf16", "none"),
        (3, "fp32", "all"),
    ]
    for stage, precision, offload in rows:
        for accumulation in (1, 2):
            cell = partial(
                equal_the_averaged_gradient,
                stage=stage,
                precision=precision,
                offload=offload,
                accumulation=accumulation,
            )
            name = f"{precision}-stage{stage}-{offload}-accumulation{accumulation}"
            cells[name] = ((2,), cell)
    for stage, offload in ((0, "none"), (1, "none"), (2, "optimizer"), (3, "none"), (3, "all")):
        cell = partial(can_be_changed_in_place, stage=stage, offload=offload)
        cells[f"changed-stage{stage}-{offload}"] = ((2,), cell)
    return cells


CELLS = _cells()
