"""fp16's loss scale, what stops a run that overflows for ever, and sums of gradients in fp32."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ds_llama.checkpoint.resume import resume
from ds_llama.checkpoint.save import save
from ds_llama.config.run import StabilityConfig
from ds_llama.errors import RunError
from ds_llama.measure.accounting import Account
from ds_llama.trainer.build import construct
from ds_llama.trainer.guard import Guard
from ds_llama.trainer.state import TrainState
from ds_llama.zero import world
from ds_llama.zero.register import register
from ds_llama.zero.step import StepResult, take_step
from tests.distributed.reference import Reference
from tests.distributed.runs import global_batch, make_run, split

CULPRIT = "model.layers.1.mlp.up_proj.weight"


def engine_of(folder: Path, **keys: Any) -> Any:
    run = make_run(folder, world=world.world_size(), **keys)
    return register(construct(run), run)


def step(engine: Any, *, overflow: bool = False, number: int = 0) -> StepResult:
    """One step; with `overflow` the last rank's gradients of CULPRIT and of a later one are inf."""
    size, handles = world.world_size(), []
    if overflow and world.rank() == size - 1:
        parameters = dict(engine.module.named_parameters())
        for name in ("lm_head.weight", CULPRIT):
            hook = partial(torch.full_like, fill_value=math.inf)
            handles.append(parameters[name].register_hook(hook))
    rows = 2 * engine.gradient_accumulation_steps()
    result = take_step(engine, split(global_batch(number, rows * size), 2, world.rank(), size))
    for handle in handles:
        handle.remove()
    assert result is not None
    return result


def said_by_all(action: Callable[[], Any]) -> RunError:
    """The RunError that `action` raises, in the same words on all ranks."""
    with pytest.raises(RunError) as caught:
        action()
    words: list[Any] = [None] * world.world_size()
    torch.distributed.all_gather_object(words, str(caught.value))
    assert len(set(words)) == 1, words
    return caught.value


def fp16(**keys: Any) -> dict[str, Any]:
    return {"fp16": {"enabled": True, **keys}}


def scales(engine: Any, overflows: Sequence[bool]) -> list[float | None]:
    """The scale of each step; an update is skipped exactly where its gradient overflows."""
    found = []
    for overflow in overflows:
        result = step(engine, overflow=overflow)
        assert result.applied is not overflow
        found.append(result.loss_scale)
    return found


def falls_to_its_end(folder: Path, *, stage: int, offload: str = "none") -> None:
    """Hysteresis 2: the second overflow halves the scale, as do all later ones, down to its end."""
    keys = {"initial_scale_power": 4, "hysteresis": 2, "min_loss_scale": 4}
    engine = engine_of(folder, stage=stage, offload=offload, deepspeed=fp16(**keys))
    assert scales(engine, [False, True, True, True]) == [16, 16, 16, 8]
    error = said_by_all(lambda: step(engine, overflow=True))
    assert re.search(
        rf"smallest loss scale, so no update can be made: the gradient of {CULPRIT} "
        r"\(rank \d\) is not finite",
        str(error),
    )
    assert "use bf16" in error.remedy


def keys_of_the_dynamic_scale(folder: Path) -> None:
    """Growth after a window of good steps; a good step restores hysteresis only when asked to."""
    window = {"initial_scale_power": 4, "loss_scale_window": 2, "hysteresis": 1}
    engine = engine_of(folder, deepspeed=fp16(**window))
    assert scales(engine, [False] * 6) == [16, 16, 16, 32, 32, 64]
    pattern = [True, False, True, False]
    for consecutive, expected in ((False, [16, 16, 16, 8]), (True, [16, 16, 16, 16])):
        keys = {"initial_scale_power": 4, "consecutive_hysteresis": consecutive}
        engine = engine_of(folder, deepspeed=fp16(**keys))
        assert scales(engine, pattern) == expected, consecutive


def goes_on_from_a_checkpoint(folder: Path) -> None:
    """Scale and used-up hysteresis are restored: the next overflow halves, as it would have."""
    engine = engine_of(folder, deepspeed=fp16(initial_scale_power=4))
    assert scales(engine, [False, True]) == [16, 16]
    resolved = engine.ds_llama.resolved
    progress = {"step": 2, "skipped_steps": 1}
    kept = save(engine, folder / "checkpoints", 2, progress, resolved)
    fresh = engine_of(folder, deepspeed=fp16(initial_scale_power=4))
    assert resume(fresh, kept, resolved) == progress
    assert scales(fresh, [True, False]) == [16, 8]


def stops_in_patience(folder: Path, *, good: int, **keys: Any) -> None:
    """Skipped three times in a row: the error names the first parameter; before that nothing."""
    engine = engine_of(folder, **keys)
    settings = StabilityConfig()
    guard = Guard(engine, TrainState(100), settings, "runs/x")

    def one(overflow: bool) -> None:
        result = step(engine, overflow=overflow)
        assert result.applied is not overflow
        assert guard.settle(result) is None

    for overflow in (*[False] * good, *[True] * (settings.max_skips - 1), False):
        one(overflow)
    for _ in range(settings.max_skips - 1):
        one(True)
    error = said_by_all(lambda: one(True))
    assert re.search(
        rf"skipped in a row: the gradient of {CULPRIT} \(rank \d\) is not finite", str(error)
    )


HALF_SUMS = {"data_types": {"grad_accum_dtype": "bf16"}, "communication_data_type": "bf16"}


def sums_in_fp32(folder: Path, *, stage: int, offload: str = "none") -> None:
    """Eight bf16 micro-batches: the norm is the reference's fp32 one, and not if summed in bf16."""
    size, count = world.world_size(), 8
    keys = {"stage": stage, "precision": "bf16", "offload": offload, "accumulation": count}
    gaps = {}
    for name, chosen in (("fp32", {}), ("bf16", HALF_SUMS)):
        engine = engine_of(folder, deepspeed=chosen, **keys)
        resolved = engine.ds_llama.resolved.deepspeed
        assert resolved["data_types"]["grad_accum_dtype"] == name
        assert resolved["communication_data_type"] == name
        reference = Reference(construct(engine.ds_llama.resolved.run, how="plain"))
        batch = global_batch(0, 2 * count * size)
        everyones = split(batch, 2, 0, 1)
        _, norm = reference.step(everyones, size)
        gaps[name] = abs(step(engine).grad_norm / norm - 1)
    assert gaps["fp32"] < 1e-6, gaps
    assert gaps["bf16"] > 5e-6, gaps


def fp32_sums_cost(folder: Path, *, stage: int) -> None:
    """2 bytes a parameter between micro-batches, whole at stage 1 and sharded at 2 and 3.

    At stage 3 the reduce bucket, which DeepSpeed allocates once, has 2 more an element; at stage 1
    bf16's whole fp32 buffer stays after the update.
    """
    size = world.world_size()
    between, after = {}, {}
    for name, chosen in (("fp32", {}), ("bf16", HALF_SUMS)):
        account = Account()
        with account:
            engine = engine_of(
                folder, stage=stage, precision="bf16", accumulation=2, deepspeed=chosen
            )
            for micro in split(global_batch(0, 4 * size), 2, world.rank(), size):
                with account.phase("backward"):
                    engine.backward(engine(**micro, reduction="sum").loss)
                with account.phase("step"):
                    engine.step()
        ends = {each.name: each.total.now_bytes for each in account.phases[::-1]}
        between[name], after[name] = ends["backward"], account.phases[-1].total.now_bytes
    zero = engine.ds_llama.resolved.deepspeed["zero_optimization"]
    whole = engine.ds_llama.resolved.model.num_parameters
    held = whole if stage == 1 else whole // size
    assert whole % size == 0
    bucket = 2 * zero["reduce_bucket_size"] if stage == 3 else 0
    price = between["fp32"] - between["bf16"]
    # At stage 2 bf16's sums are views, so that a norm weight that is cut in two is kept whole.
    slack = 2 * 64 if stage == 2 and size > 1 else 0
    assert 0 <= 2 * held + bucket - price <= slack, (price, 2 * held, bucket)
    stays = {1: 4 * whole, 2: 0, 3: 2 * held + bucket}[stage]
    assert after["fp32"] - after["bf16"] == stays, (after, stays)


CELLS: dict[str, tuple[tuple[int, ...], Callable[[Path], None]]] = {
    "scale-falls-stage1": ((2,), partial(falls_to_its_end, stage=1)),
    "scale-falls-stage2": ((1,), partial(falls_to_its_end, stage=2)),
    "scale-falls-stage2-offload": ((2,), partial(falls_to_its_end, stage=2, offload="optimizer")),
    "scale-falls-stage3": ((2,), partial(falls_to_its_end, stage=3)),
    "scale-falls-stage3-offload": ((1,), partial(falls_to_its_end, stage=3, offload="all")),
    "scale-keys": ((1,), keys_of_the_dynamic_scale),
    "scale-resumes": ((1,), goes_on_from_a_checkpoint),
    "patience-static": (
        (2,),
        partial(stops_in_patience, good=1, deepspeed=fp16(loss_scale=128.0)),
    ),
    "patience-bf16-stage1": (
        (2,),
        partial(stops_in_patience, good=0, stage=1, precision="bf16", accumulation=2),
    ),
    "patience-fp32-stage3": ((2,), partial(stops_in_patience, good=0, stage=3)),
    "fp32-sums-stage1": ((2,), partial(sums_in_fp32, stage=1)),
    "fp32-sums-stage2": ((1,), partial(sums_in_fp32, stage=2)),
    "fp32-sums-stage2-offload": ((2,), partial(sums_in_fp32, stage=2, offload="optimizer")),
    "fp32-sums-stage3": ((2,), partial(sums_in_fp32, stage=3)),
    "fp32-sums-stage3-offload": ((1,), partial(sums_in_fp32, stage=3, offload="all")),
    **{
        f"fp32-sums-cost-stage{stage}": ((1, 2), partial(fp32_sums_cost, stage=stage))
        for stage in (1, 2, 3)
    },
}
