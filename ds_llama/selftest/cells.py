"""Which cells the matrix has, and how far from the reference each may be.

    fp32: stages 0 to 3; bf16, fp16: 1 to 3      (stage 0 has no fp32 masters: refused)
    offload: none; optimizer from stage 1 on; parameters, both and NVMe at stage 3
    recompute off, on; accumulation 1, 4

What DeepSpeed has no such thing as (an offload at stage 0, parameters or NVMe below stage 3) is no
cell. No torch here: the command line selects cells before anything is started.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from ds_llama.errors import CallError

STAGES = {"fp32": (0, 1, 2, 3), "bf16": (1, 2, 3), "fp16": (1, 2, 3)}
OFFLOADS = {
    0: ("none",),
    1: ("none", "optimizer"),
    2: ("none", "optimizer"),
    3: ("none", "optimizer", "parameters", "all", "nvme", "nvme-all"),
}
ACCUMULATIONS = (1, 4)

# What each word is in the DeepSpeed JSON. The loss scale is fixed: the reference has the same.
LOSS_SCALE = 2.0**10
PRECISION: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"bf16": {"enabled": True}},
    "fp16": {"fp16": {"enabled": True, "initial_scale_power": 10}},
}
_HOST = {"device": "cpu"}
_NVME = {"device": "nvme"}
OFFLOAD: dict[str, dict[str, Any]] = {
    "none": {},
    "optimizer": {"offload_optimizer": _HOST},
    "parameters": {"offload_param": _HOST},
    "all": {"offload_optimizer": _HOST, "offload_param": _HOST},
    "nvme": {"offload_optimizer": _NVME},
    "nvme-all": {"offload_optimizer": _NVME, "offload_param": _NVME | {"max_in_cpu": 0}},
}


@dataclass(frozen=True)
class Limits:
    """The largest differences that the order of sums explains; each has its reason here.

    Seen is the largest of the whole matrix on CPU, at one and two processes.

    loss: nats, of some 5. Both sides sum cross-entropies of the same bits in another order: two
        ulp (4.8e-7 each at 4 to 8). Seen: 4.8e-7.
    grad_norm: relative. A gradient is a sum over ranks and micro-batches, and the norm a sum of
        squares over partitions: four ulp (1.2e-7 each at 1). Seen: 1.7e-7.
    clip_coef: absolute; the norm's inverse, below 1/2 here. Seen: 8.9e-8.
    parameters: absolute, fp32; the largest are near 1, where an ulp is 1.2e-7. All move by some
        1e-3, the learning rate, an update, in which an ulp of a gradient's terms (4e-9) that is
        left in a gradient close to zero counts lr / eps times (`tiny.OPTIMIZER`). One ulp an
        update in fp32, two for the one update that is seen in half precision. Seen: 1.2e-7.
    """

    loss: float
    grad_norm: float
    clip_coef: float
    parameters: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


# In half precision the reference goes on from the engine's masters after each update, so what is
# left there is one update's difference; in fp32 it is that of all of them.
LIMITS = {
    "fp32": Limits(loss=1e-6, grad_norm=5e-7, clip_coef=2.5e-7, parameters=5e-7),
    "bf16": Limits(loss=1e-6, grad_norm=5e-7, clip_coef=2.5e-7, parameters=2.5e-7),
    "fp16": Limits(loss=1e-6, grad_norm=5e-7, clip_coef=2.5e-7, parameters=2.5e-7),
}


@dataclass(frozen=True)
class Cell:
    """One combination of the matrix."""

    precision: str
    stage: int
    offload: str = "none"
    recompute: bool = False
    accumulation: int = 1

    @property
    def name(self) -> str:
        middle = "recompute" if self.recompute else "kept"
        return (
            f"{self.precision}-stage{self.stage}-{self.offload}-{middle}-"
            f"accumulation{self.accumulation}"
        )

    @property
    def limits(self) -> Limits:
        return LIMITS[self.precision]

    def deepspeed(self, folder: str = ".") -> dict[str, Any]:
        """The cell's DeepSpeed JSON; what goes to NVMe goes below `folder`."""
        zero: dict[str, Any] = {"stage": self.stage}
        for section, where in OFFLOAD[self.offload].items():
            swap = {"nvme_path": f"{folder}/swap"} if where["device"] == "nvme" else {}
            zero[section] = where | swap
        recompute = {"activation_checkpointing": {}} if self.recompute else {}
        return {
            "zero_optimization": zero,
            "gradient_clipping": 1.0,
            **PRECISION[self.precision],
            **recompute,
        }

    def to_dict(self) -> dict[str, Any]:
        return {"cell": self.name, **asdict(self)}


def matrix() -> list[Cell]:
    """Every cell, in the order in which they are run and shown."""
    return [
        Cell(precision, stage, offload, recompute, accumulation)
        for precision, stages in STAGES.items()
        for stage in stages
        for offload, recompute, accumulation in product(
            OFFLOADS[stage], (False, True), ACCUMULATIONS
        )
    ]


def select(patterns: Sequence[str]) -> list[Cell]:
    """The cells with one of the shell patterns somewhere in their name; all without patterns.

    Raises CallError for a pattern that is in no name.
    """
    cells = matrix()
    for pattern in patterns:
        if not any(_matches(cell, pattern) for cell in cells):
            raise CallError(
                f"no cell's name has {pattern!r} in it",
                where="--only",
                remedy=f"names are like {cells[0].name} and {cells[-1].name}",
            )
    return [c for c in cells if not patterns or any(_matches(c, p) for p in patterns)]


def _matches(cell: Cell, pattern: str) -> bool:
    return fnmatch.fnmatchcase(cell.name, f"*{pattern}*")
