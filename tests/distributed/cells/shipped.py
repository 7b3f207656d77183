"""Every DeepSpeed JSON of ds_configs trains: found by itself, four updates, a falling loss."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from ds_llama.config import load_run, shipped
from ds_llama.errors import RunError
from ds_llama.trainer.build import construct
from ds_llama.zero import engine as engines
from ds_llama.zero import world
from ds_llama.zero.register import register
from ds_llama.zero.step import take_step
from tests.distributed.runs import global_batch, make_run, split
from tests.strategies import REFUSED, content


def trains(folder: Path, name: str) -> None:
    size = world.world_size()
    sections = make_run(folder, world=size).model_dump(mode="json", exclude={"deepspeed"})
    folder.mkdir(parents=True, exist_ok=True)
    here = [
        f"deepspeed.zero_optimization.{key}.nvme_path={folder}"
        for key, value in content(name)["zero_optimization"].items()
        if isinstance(value, dict) and value["device"] == "nvme"
    ]
    run = load_run(sections | {"deepspeed": name}, *here)
    engine = register(construct(run), run)
    batch = global_batch(0, 2 * size)
    losses = [take_step(engine, split(batch, 2, world.rank(), size)).loss for _ in range(4)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.05
    written = json.loads((folder / "deepspeed.json").read_text())
    assert written["zero_optimization"]["stage"] == engine.zero_optimization_stage()


def fp16_skips_what_overflows(folder: Path) -> None:
    """A scale that is too large is halved until a step can be made; nothing moves until then."""
    size = world.world_size()
    fp16 = {"enabled": True, "initial_scale_power": 32, "hysteresis": 1}
    run = make_run(folder, stage=2, precision="fp16", world=size, deepspeed={"fp16": fp16})
    engine = register(construct(run), run)
    window = split(global_batch(0, 2 * size), 2, world.rank(), size)
    results = [take_step(engine, window) for _ in range(30)]
    applied = [result.applied for result in results]
    first = applied.index(True)
    assert first > 0
    assert all(applied[first:])
    scales = [result.loss_scale for result in results[: first + 1]]
    assert scales == [2.0 ** (32 - i) for i in range(first + 1)]
    assert len({result.loss for result in results[: first + 1]}) == 1  # no weight has moved
    assert results[0].grad_norm is None
    assert engines.adam_step(engine) == 30 - first


def fp16_without_a_way_out_stops(folder: Path) -> None:
    size = world.world_size()
    run = make_run(folder, stage=1, precision="fp16", world=size)
    engine = register(construct(run), run)
    engines.set_lr(engine, 1e30)
    window = split(global_batch(0, 2 * size), 2, world.rank(), size)
    with pytest.raises(RunError, match="fp16 overflows at the smallest loss scale"):
        deque((take_step(engine, window) for _ in range(40)), maxlen=0)


def _cells() -> dict[str, tuple[tuple[int, ...], Callable[[Path], None]]]:
    names = set(shipped.names()) - set(REFUSED)
    assert names
    cells = {name: ((2,), partial(trains, name=name)) for name in sorted(names)}
    return cells | {
        "fp16-overflow": ((2,), fp16_skips_what_overflows),
        "fp16-at-its-end": ((2,), fp16_without_a_way_out_stops),
    }


CELLS = _cells()
