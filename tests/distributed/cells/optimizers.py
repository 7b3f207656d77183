"""Every type of optimizer trains as torch's own does over the hand-written loop's gradients.

Three updates; losses, norms and every element of the fp32 parameters after each. What is left
between the two sides is the order of fp32 sums: an ulp or two of the gradient, times the rate.
AdamW and Adagrad divide by the root of what they saw, which makes more of it where a gradient is
close to zero (2.2e-6 was seen; equivalence.py says more). Lion takes the sign of a sum, which may
fall on either side of zero: one element in a thousand may then differ, by twice the rate.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import safe_get_full_fp32_param

from ds_llama.trainer.build import construct
from ds_llama.zero import engine as engines
from ds_llama.zero import world
from ds_llama.zero.register import register
from ds_llama.zero.step import take_step
from tests.distributed.oracle import Oracle, PaperLion
from tests.distributed.runs import global_batch, make_run, split

STEPS, MICRO = 3, 2
Section = dict[str, Any]
LIMITS = {"AdamW": 6e-6, "SGD": 1e-6, "Lion": 1e-6, "Adagrad": 6e-6}
SIGN_FLIPS = {"Lion": 1e-3}
SECTIONS: dict[str, Section] = {
    "AdamW": {"lr": 1e-3, "weight_decay": 0.1},
    "SGD": {"lr": 0.5, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "Lion": {"lr": 1e-3, "betas": [0.9, 0.99], "weight_decay": 0.1},
    "Adagrad": {"lr": 1e-2, "weight_decay": 0.01},
}


def torch_optimizer(kind: str, section: Section, groups: list[dict[str, Any]]) -> list[Any]:
    """torch.optim's, unfused, with the settings of a section."""
    keys = {key: section[key] for key in ("lr", "momentum", "nesterov") if key in section}
    if kind == "AdamW":
        return [torch.optim.AdamW(groups, **keys, betas=(0.9, 0.95), foreach=False)]
    if kind == "Lion":
        return [PaperLion(groups, **keys, betas=tuple(section["betas"]))]
    return [getattr(torch.optim, kind)(groups, **keys, foreach=False)]


def run_cell(
    folder: Path,
    kind: str,
    *,
    stage: int,
    precision: str = "fp32",
    offload: str = "none",
    sabotage: Section | None = None,
) -> None:
    size, section = world.world_size(), SECTIONS[kind]
    run = make_run(
        folder,
        stage=stage,
        precision=precision,
        offload=offload,
        world=size,
        optimizer={"type": kind, "schedule": "constant", **section},
        deepspeed={"gradient_clipping": 0.0},
    )
    half = precision != "fp32"
    oracle = Oracle(
        construct(run, how="plain"),
        partial(torch_optimizer, kind, section | (sabotage or {})),
        weight_decay=section["weight_decay"],
        reduce_in_half=half,
    )
    engine = register(construct(run), run)
    beyond = 0.0
    for step in range(STEPS):
        batch = global_batch(step, MICRO * size)
        engines.set_lr(engine, section["lr"])
        result = take_step(engine, split(batch, MICRO, world.rank(), size))
        everyones = split(batch, MICRO, 0, 1)
        loss, norm = oracle.step(everyones, size)
        found = parameter_gaps(engine, oracle, adopt=half)
        beyond = max(beyond, float((found > LIMITS[kind]).float().mean()))
        if sabotage is None:
            assert abs(result.loss - loss) < 1e-6
            assert abs(result.grad_norm - norm) < 2e-6 * norm
    assert (beyond <= SIGN_FLIPS.get(kind, 0.0)) == (sabotage is None), (beyond, float(found.max()))


def parameter_gaps(engine: torch.nn.Module, oracle: Oracle, *, adopt: bool) -> torch.Tensor:
    """|engine - oracle| of every element of every fp32 parameter."""
    found = []
    for name, parameter in engine.module.named_parameters():
        whole = engine.zero_optimization_stage() == 0
        ours = (parameter if whole else safe_get_full_fp32_param(parameter)).detach()
        found.append((ours - oracle.masters[name].detach()).abs().view(-1))
        if adopt:
            oracle.adopt(name, ours)
    return torch.cat(found)


def on_nvme(folder: Path) -> None:
    """Moments on NVMe give the same bits as moments on the host, clipped by value or not."""
    for kind, state, more in (
        ("SGD", "momentum_buffer", {"clip_value": 1e-4}),
        ("Adagrad", "sum", {}),
    ):
        swap = folder / kind
        section = {"type": kind, "schedule": "constant", **SECTIONS[kind], **more}
        host = _weights(swap, {"device": "cpu"}, section)
        nvme = _weights(swap, {"device": "nvme", "nvme_path": str(swap)}, section)
        assert list(swap.rglob(f"{state}*.swp")), "small moments stay where they are"
        assert torch.equal(host, nvme)


def rows_on_nvme(folder: Path) -> None:
    """A row is clipped by the norm that its gradients had before they left for NVMe."""
    swap = {"device": "nvme", "nvme_path": str(folder)}
    found = {}
    for place, offload in (("host", {"device": "cpu"}), ("nvme", swap)):
        for limit in (1e-3, 1.1e-3):
            rows = [{"parameters": ["*embed*"], "gradient_clipping": limit}]
            section = {"type": "SGD", "schedule": "constant", **SECTIONS["SGD"], "groups": rows}
            found[place, limit] = _weights(folder, offload, section)
    assert list(folder.rglob("momentum_buffer*.swp"))
    gaps = {
        limit: float((found["host", 1e-3] - found["nvme", limit]).abs().max())
        for limit in (1e-3, 1.1e-3)
    }
    assert gaps[1e-3] < 1e-8 < 1e-6 < gaps[1.1e-3], gaps


def _weights(folder: Path, offload: dict[str, str], section: Section) -> torch.Tensor:
    """The fp32 embedding after two updates at stage 3."""
    folder.mkdir(parents=True, exist_ok=True)
    size = world.world_size()
    zero = {"stage": 3, "offload_optimizer": offload, "sub_group_size": 300_000}
    run = make_run(
        folder,
        world=size,
        optimizer=section,
        model={"vocab_size": 8192},
        deepspeed={"gradient_clipping": 0.0, "zero_optimization": zero},
    )
    engine = register(construct(run), run)
    for step in range(2):
        take_step(engine, split(global_batch(step, MICRO * size), MICRO, world.rank(), size))
    return safe_get_full_fp32_param(engine.module.model.embed_tokens.weight).clone()


def _cells() -> dict[str, tuple[tuple[int, ...], Callable[[Path], None]]]:
    cells: dict[str, tuple[tuple[int, ...], Callable[[Path], None]]] = {}
    where = [(0, "fp32", "none"), (1, "fp32", "none"), (2, "fp32", "none"), (3, "fp32", "none")]
    where += [(1, "bf16", "none"), (2, "bf16", "none"), (3, "bf16", "none")]
    where += [(2, "bf16", "optimizer"), (3, "fp32", "optimizer")]
    for kind in SECTIONS:  # equivalence.py has AdamW everywhere
        for stage, precision, offload in where if kind != "AdamW" else where[::4]:
            cell = partial(run_cell, kind=kind, stage=stage, precision=precision, offload=offload)
            cells[f"{kind}-{precision}-stage{stage}-{offload}"] = ((2,), cell)
    wrong: dict[str, Section] = {
        "AdamW": {"lr": 1.1e-3},
        "SGD": {"momentum": 0.85},
        "Lion": {"betas": [0.5, 0.99]},
        "Adagrad": {"lr": 1.1e-2},
    }
    for kind, sabotage in wrong.items():
        cells[f"sabotaged-{kind}"] = (
            (2,),
            partial(run_cell, kind=kind, stage=2, sabotage=sabotage),
        )
    cells["nvme"] = ((2,), on_nvme)
    cells["nvme-rows"] = ((2,), rows_on_nvme)
    return cells


CELLS = _cells()
