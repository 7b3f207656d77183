"""Precisions with no fp32 masters of their own: torch's autocast, and masters and moments in bf16.

Each is compared with the same thing in plain torch: the reference loop whose model runs under
`torch.autocast`, and `torch.optim.AdamW` on bf16 parameters. The oracle goes on from the engine's
parameters after each update: a last bit would otherwise round other weights to their neighbours.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import safe_get_full_fp32_param

from ds_llama.config.shipped import folder as shipped
from ds_llama.selftest.reference import Reference
from ds_llama.selftest.tiny import OPTIMIZER
from ds_llama.trainer.build import construct
from ds_llama.zero import engine as engines
from ds_llama.zero import world
from ds_llama.zero.register import register
from ds_llama.zero.step import take_step
from tests.distributed.runs import global_batch, make_run, split

STEPS, MICRO = 3, 2


def _run(folder: Path, name: str) -> Any:
    content = json.loads((shipped() / f"{name}.json").read_text())
    optimizer = OPTIMIZER | {"weight_decay": 0.0}
    return make_run(folder, world=world.world_size(), deepspeed=content, optimizer=optimizer)


def _whole(engine: Any) -> dict[str, torch.Tensor]:
    return {n: safe_get_full_fp32_param(p).clone() for n, p in engine.module.named_parameters()}


def autocast(folder: Path, *, sabotage: bool = False) -> None:
    size, run = world.world_size(), _run(folder, "zero2_autocast")
    model, dtype = construct(run, how="plain"), torch.bfloat16
    forward = model.forward

    def under_autocast(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", dtype=dtype, enabled=not sabotage):
            return forward(*args, **kwargs)

    model.forward = under_autocast
    reference = Reference(model, eps=OPTIMIZER["eps"], weight_decay=0.0)
    engine = register(construct(run), run)
    worst = 0.0
    for step in range(STEPS):
        batch = global_batch(step, MICRO * size)
        everyones = split(batch, MICRO, 0, 1)
        result = take_step(engine, split(batch, MICRO, world.rank(), size))
        loss, norm = reference.step(everyones, size)
        worst = max(worst, abs(result.loss - loss) / 1e-6, abs(result.grad_norm / norm - 1) / 5e-7)
        for name, ours in _whole(engine).items():
            worst = max(worst, reference.gap(name, ours) / 5e-7)
            reference.adopt(name, ours)
    engines.destroy(engine)
    assert (worst > 1) == sabotage, worst


def bf16_states(folder: Path, *, lr: float = 1e-3) -> None:
    size, run = world.world_size(), _run(folder, "zero2_bf16_states")
    model = construct(run, how="plain")
    named = dict(model.named_parameters())
    settings = {"eps": OPTIMIZER["eps"], "betas": (0.9, 0.95), "weight_decay": 0.0}
    oracle = torch.optim.AdamW(named.values(), lr=lr, fused=True, **settings)
    engine = register(construct(run), run)
    different = total = 0
    for step in range(STEPS):
        batch = global_batch(step, MICRO * size)
        tokens = int((batch["labels"][:, 1:] != -100).sum())
        summed = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
        for rank in range(size):
            (micro,) = split(batch, MICRO, rank, size)
            model.zero_grad()
            (model(**micro, reduction="sum").loss * (size / tokens)).backward()
            for name, parameter in named.items():
                summed[name] += parameter.grad / size
        for name, parameter in named.items():
            parameter.grad = summed[name]
        torch.nn.utils.clip_grad_norm_(named.values(), 1.0)
        oracle.step()
        take_step(engine, split(batch, MICRO, world.rank(), size))
        states = engine.optimizer.optimizer.state.values()
        assert {state["exp_avg"].dtype for state in states} == {torch.bfloat16}
        for name, ours in _whole(engine).items():
            different += int((ours != named[name].float()).sum())
            total += ours.numel()
            named[name].data.copy_(ours)
    engines.destroy(engine)
    assert (different / total > 0.01) == (lr != 1e-3), different / total


CELLS = {
    "autocast": ((1, 2), autocast),
    "autocast-sabotaged": ((2,), partial(autocast, sabotage=True)),
    "bf16-states": ((1, 2), bf16_states),
    "bf16-states-sabotaged": ((2,), partial(bf16_states, lr=1.1e-3)),
}
