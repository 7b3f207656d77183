"""The selftest's cells: every stage, offload and precision trains as the hand-written loop does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from ds_llama.selftest.cells import Cell, matrix
from ds_llama.selftest.compare import compare
from ds_llama.selftest.sabotage import SABOTAGES, Sabotage
from ds_llama.zero import engine as engines

TWINS = SABOTAGES | {
    "lr": Sabotage("10 % more lr", engine=lambda engine: engines.set_lr(engine, 1.1e-3))
}


def equals(folder: Path, *, cell: Cell) -> None:
    gaps = compare(cell, folder)
    assert gaps.within(cell.limits), f"{gaps}, limits {cell.limits}"


def differs(folder: Path, *, cell: Cell, sabotage: str) -> None:
    gaps = compare(cell, folder, TWINS[sabotage])
    assert not gaps.within(cell.limits), f"{gaps} with {TWINS[sabotage].what}"


def _cells() -> dict[str, tuple[tuple[int, ...], Callable[[Path], None]]]:
    """What fits into a suite: `ds-llama selftest` runs all of it.

    Recomputation in one precision, no NVMe; of accumulation a first, a middle and a last
    micro-batch; a single process with accumulation only, and not in fp16, which is bf16 with a loss
    scale, whatever the number of processes.
    """
    cells: dict[str, tuple[tuple[int, ...], Callable[[Path], None]]] = {}
    for cell in matrix():
        fits = not cell.recompute or (cell.precision == "fp32" and cell.offload == "none")
        if fits and not cell.offload.startswith("nvme"):
            cell = replace(cell, accumulation=min(cell.accumulation, 3))
            alone = cell.accumulation > 1 and not cell.recompute and cell.precision != "fp16"
            cells[cell.name] = ((1, 2) if alone else (2,), partial(equals, cell=cell))
    for sabotage in TWINS:
        for precision in ("fp32", "bf16", "fp16"):
            twin = partial(differs, cell=Cell(precision, stage=2), sabotage=sabotage)
            cells[f"sabotaged-{precision}-{sabotage}"] = ((2,), twin)
    return cells


CELLS = _cells()
