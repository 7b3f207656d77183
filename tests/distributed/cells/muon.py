"""Muon trains as torch.optim.Muon does for the blocks' matrices, torch.optim.AdamW for the rest.

Both orthogonalise in bf16, and there what five quintic steps make of a rounding shows: 5e-4 in
updates of up to 2e-2, without a common sign. The close comparison has both iterate in fp32; at
stage 2 in half precision ZeRO keeps the matrices' gradients and momentum in that precision, and
the same iteration makes as much of their rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from deepspeed.accelerator import get_accelerator

from ds_llama.errors import ConfigError
from ds_llama.trainer.build import construct
from ds_llama.zero import world
from ds_llama.zero.register import register
from ds_llama.zero.step import take_step
from tests.distributed.cells.optimizers import parameter_gaps
from tests.distributed.oracle import Oracle
from tests.distributed.runs import global_batch, make_run, split

STEPS, MICRO = 3, 2
SECTION = {"lr": 0.02, "adam_lr": 1e-3, "weight_decay": 0.1}
# 1.2e-7 and 4.7e-4 were seen.
EXACT, ROUNDED = 5e-6, 1e-3


def newton_schulz(
    gradient: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> torch.Tensor:
    """The published iteration (kellerjordan.github.io/posts/muon), in fp32."""
    a, b, c = coefficients
    x = gradient.T if gradient.shape[0] > gradient.shape[1] else gradient
    x = x / (x.norm() + eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if gradient.shape[0] > gradient.shape[1] else x


@contextmanager
def in_fp32() -> Iterator[None]:
    """Both sides iterate in fp32: DeepSpeed's, where it finds no half precision, and torch's."""
    no = lambda: False  # noqa: E731
    with (
        mock.patch("torch.optim._muon._zeropower_via_newtonschulz", newton_schulz),
        mock.patch.object(get_accelerator(), "is_bf16_supported", no),
        mock.patch.object(get_accelerator(), "is_fp16_supported", no),
    ):
        yield


def run_cell(
    folder: Path,
    *,
    stage: int,
    precision: str = "fp32",
    offload: str = "none",
    method: str = "standard",
    accumulation: int = 1,
    momentum: float = 0.95,
    fp32: bool = True,
) -> None:
    size = world.world_size()
    run = make_run(
        folder,
        stage=stage,
        precision=precision,
        offload=offload,
        accumulation=accumulation,
        world=size,
        optimizer={"type": "Muon", "ns_method": method, **SECTION},
        deepspeed={"gradient_clipping": 0.0},
    )

    def make(groups: list[dict[str, Any]]) -> list[torch.optim.Optimizer]:
        hidden = [group for group in groups if group["hidden"]]
        others = [group for group in groups if not group["hidden"]]
        return [
            torch.optim.Muon(hidden, lr=0.02, momentum=momentum),
            torch.optim.AdamW(others, lr=1e-3, betas=(0.9, 0.95)),
        ]

    half = precision != "fp32"
    oracle = Oracle(
        construct(run, how="plain"),
        make,
        weight_decay=0.1,
        loss_scale=2.0**10 if precision == "fp16" else 1.0,
    )
    engine = register(construct(run), run)
    gap = 0.0
    exact = fp32 and not (half and stage == 2)
    for step in range(STEPS if exact else 1):
        batch = global_batch(step, MICRO * accumulation * size)
        everyones = split(batch, MICRO, 0, 1)
        with in_fp32() if fp32 else nullcontext():
            result = take_step(engine, split(batch, MICRO, world.rank(), size))
            loss, _ = oracle.step(everyones, size)
        assert result.applied
        assert (result.grad_norm, result.clip_coef) == (None, None)
        assert momentum != 0.95 or abs(result.loss - loss) < 1e-5
        gap = max(gap, float(parameter_gaps(engine, oracle, adopt=half).max()))
    (folder / f"gap-{world.rank()}").write_text(str(gap))
    assert (gap < (EXACT if exact else ROUNDED)) == (momentum == 0.95), gap


def clips_adamw_s_share_by_rows(folder: Path) -> None:
    """A row may clip what AdamW updates; one that takes in a matrix of a block is refused."""
    size = world.world_size()
    for stage, parameters in ((2, ["lm_head.*"]), (3, ["*_proj.weight", "lm_head.*"])):
        rows = [{"parameters": parameters, "gradient_clipping": 0.1}]
        section = {"type": "Muon", "groups": rows, **SECTION}
        run = make_run(
            folder,
            stage=stage,
            world=size,
            optimizer=section,
            deepspeed={"gradient_clipping": 0.0},
        )
        if len(parameters) == 1:
            engine = register(construct(run), run)
            window = split(global_batch(0, MICRO * size), MICRO, world.rank(), size)
            assert take_step(engine, window).clip_coef < 0.5
            continue
        with pytest.raises(ConfigError, match=r"row 0 clips .*_proj\.weight, which Muon") as caught:
            register(construct(run), run)
        assert caught.value.where == "run:optimizer.groups.0.gradient_clipping"
        assert "outside the blocks' matrices" in caught.value.remedy


def _cells() -> dict[str, tuple[tuple[int, ...], Callable[[Path], None]]]:
    where: list[dict[str, Any]] = [
        *({"stage": stage} for stage in (0, 1, 2, 3)),
        *({"stage": stage, "precision": "bf16"} for stage in (1, 2, 3)),
        {"stage": 2, "precision": "fp16", "offload": "optimizer"},
        {"stage": 3, "precision": "bf16", "offload": "optimizer", "accumulation": 2},
        {"stage": 2, "method": "gram"},
        {"stage": 2, "fp32": False},
    ]
    cells: dict[str, tuple[tuple[int, ...], Callable[[Path], None]]] = {}
    for settings in where:
        name = "-".join(f"{key}-{value}" for key, value in settings.items())
        cells[name] = ((2,), partial(run_cell, **settings))
    cells["sabotaged-momentum"] = ((2,), partial(run_cell, stage=2, momentum=0.94))
    cells["rows"] = ((2,), clips_adamw_s_share_by_rows)
    return cells


CELLS = _cells()
