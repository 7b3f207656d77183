"""Clipping by one norm, by value and by row is torch's own on the averaged gradient.

SGD with momentum, because its updates are as large as the gradient: under Adam a gradient clipped
by a wrong factor trains almost as well. Every limit binds, which the oracle checks.
"""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch import nn

from ds_llama.trainer.build import construct
from ds_llama.zero import engine as engines
from ds_llama.zero import world
from ds_llama.zero.register import register
from ds_llama.zero.step import take_step
from tests.distributed.cells.optimizers import parameter_gaps
from tests.distributed.oracle import Oracle
from tests.distributed.runs import global_batch, make_run, split

STEPS, MICRO, LR, DECAY = 3, 2, 0.3, 0.01
VALUE, NORM = 2e-3, 0.2
ROWS = [
    {"parameters": ["*.embed_tokens.*"], "gradient_clipping": 0.1, "lr": 0.03},
    {"parameters": ["*.layers.0.*", "*norm*"], "gradient_clipping": 0.05, "weight_decay": 0.02},
    {"parameters": ["*q_proj*"], "lr": 0.6},
]
SCALE = {"fp16": 2.0**10}
# A few ulp of a sum in another order, times the rate; SGD without clipping has 1e-6.
LIMIT = 1e-6
Grads = dict[str, nn.Parameter]


def by_value(masters: Grads, value: float = VALUE) -> None:
    assert max(float(m.grad.abs().max()) for m in masters.values()) > 2 * value
    nn.utils.clip_grad_value_(masters.values(), value)


def by_norm(masters: Grads) -> None:
    assert float(nn.utils.clip_grad_norm_(masters.values(), NORM)) > 2 * NORM


def by_row(masters: Grads, wrong: float = 1.0) -> None:
    seen: set[str] = set()
    for row in ROWS:
        own = {
            name: master
            for name, master in masters.items()
            if name not in seen and any(fnmatchcase(name, p) for p in row["parameters"])
        }
        seen |= set(own)
        limit = row.get("gradient_clipping")
        if limit is not None:
            norm = nn.utils.clip_grad_norm_(own.values(), limit * wrong)
            assert float(norm) > 2 * limit, (row, float(norm))


WAYS: dict[str, tuple[dict[str, Any], dict[str, Any], Callable[[Grads], None]]] = {
    "value": ({"clip_value": VALUE}, {}, by_value),
    "norm": ({}, {"gradient_clipping": NORM}, by_norm),
    "rows": ({"groups": ROWS}, {}, by_row),
}


def run_cell(
    folder: Path,
    way: str,
    *,
    stage: int,
    precision: str = "fp32",
    offload: str = "none",
    accumulation: int = 1,
    wrong: Callable[[Grads], None] | None = None,
) -> None:
    size = world.world_size()
    section, deepspeed, clip = WAYS[way]
    run = make_run(
        folder,
        stage=stage,
        precision=precision,
        offload=offload,
        accumulation=accumulation,
        world=size,
        optimizer={
            "type": "SGD",
            "lr": LR,
            "weight_decay": DECAY,
            "schedule": "constant",
            **section,
        },
        deepspeed={"gradient_clipping": 0.0, **deepspeed},
    )
    half = precision != "fp32"
    rows = [
        (pattern, {k: v for k, v in row.items() if k in ("lr", "weight_decay")} | {"row": index})
        for index, row in enumerate(section.get("groups", ()))
        for pattern in row["parameters"]
    ]
    oracle = Oracle(
        construct(run, how="plain"),
        lambda groups: [torch.optim.SGD(groups, lr=LR, momentum=0.9, foreach=False)],
        weight_decay=DECAY,
        rows=rows,
        clip=wrong or clip,
        reduce_in_half=half and accumulation == 1,
        loss_scale=SCALE.get(precision, 1.0),
    )
    engine = register(construct(run), run)
    gap = 0.0
    for step in range(STEPS):
        batch = global_batch(step, MICRO * accumulation * size)
        factor = 1.0 - 0.25 * step  # a schedule, which every group follows at its own ratio
        engines.set_lr(engine, LR * factor)
        for group in oracle.optimizers[0].param_groups:
            group["lr"] = group.setdefault("base", group["lr"]) * factor
        result = take_step(engine, split(batch, MICRO, world.rank(), size))
        everyones = split(batch, MICRO, 0, 1)
        _, norm = oracle.step(everyones, size)
        assert result.applied
        assert engines.get_lr(engine) == LR * factor
        if wrong is None:
            assert abs(result.grad_norm - norm) < 2e-6 * norm, "logged: the norm before clipping"
        assert (result.clip_coef is None) == (way == "value")
        assert result.clip_coef is None or result.clip_coef < 0.5
        gap = max(gap, float(parameter_gaps(engine, oracle, adopt=half).max()))
    assert (gap < LIMIT) == (wrong is None), gap


def an_infinite_gradient_is_not_clipped_into_a_number(folder: Path) -> None:
    """DeepSpeed skips the update, and stage 0, which never skips, shows that something is wrong."""
    size = world.world_size()
    for stage, offload in ((0, "none"), (1, "none"), (2, "optimizer"), (3, "none")):
        for section in ({"clip_value": VALUE}, {"groups": ROWS}):
            optimizer = {"type": "SGD", "lr": LR, **section}
            run = make_run(
                folder / f"{stage}",
                stage=stage,
                offload=offload,
                world=size,
                optimizer=optimizer,
                deepspeed={"gradient_clipping": 0.0},
            )
            model = construct(run)
            norm = model.model.layers[0].input_layernorm.weight
            if world.rank() == 0:
                norm.register_hook(lambda g: torch.full_like(g, torch.inf))
            engine = register(model, run)
            before = safe_weight(engine)
            window = split(global_batch(0, MICRO * size), MICRO, world.rank(), size)
            result = take_step(engine, window)
            if stage == 0:
                assert not torch.isfinite(safe_weight(engine)).all()
            else:
                assert not result.applied
                assert torch.equal(before, safe_weight(engine))


def safe_weight(engine: Any) -> torch.Tensor:
    """The fp32 weight of the first norm."""
    weight = engine.module.model.layers[0].input_layernorm.weight
    if engine.zero_optimization_stage() == 0:
        return weight.detach().clone()
    return safe_get_full_fp32_param(weight).detach().clone()


def _cells() -> dict[str, tuple[tuple[int, ...], Callable[[Path], None]]]:
    cells: dict[str, tuple[tuple[int, ...], Callable[[Path], None]]] = {}
    own = [(stage, "fp32", "none", 1) for stage in (0, 1, 2, 3)]
    own += [(1, "bf16", "none", 2), (2, "bf16", "none", 1), (3, "bf16", "optimizer", 2)]
    own += [(2, "fp16", "optimizer", 1), (3, "fp16", "none", 1)]
    # One norm over all is DeepSpeed's own, and equivalence.py has it under AdamW everywhere.
    theirs = [(0, "fp32", "none", 1), (3, "bf16", "none", 1), (2, "fp16", "optimizer", 1)]
    for way in WAYS:
        for stage, precision, offload, accumulation in theirs if way == "norm" else own:
            name = f"{way}-{precision}-stage{stage}-{offload}-accumulation{accumulation}"
            settings = {"stage": stage, "precision": precision, "offload": offload}
            cell = partial(run_cell, way=way, accumulation=accumulation, **settings)
            cells[name] = ((2,), cell)
    wrong = {"value": partial(by_value, value=1.1 * VALUE), "rows": partial(by_row, wrong=1.1)}
    for way, clip in wrong.items():
        cells[f"sabotaged-{way}"] = ((2,), partial(run_cell, way=way, stage=2, wrong=clip))
    cells["infinite-gradient"] = ((2,), an_infinite_gradient_is_not_clipped_into_a_number)
    return cells


CELLS = _cells()
