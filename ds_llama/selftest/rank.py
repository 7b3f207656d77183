"""All cells of one launch, on one rank of it.

FOLDER/plan.json     which cells, and the sabotage; written by who starts the launch
FOLDER/about.json    device, world size and versions; written by rank 0
FOLDER/rows.jsonl    one row a cell, as they end; written by rank 0
"""

from __future__ import annotations

import json
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from torch.distributed import distributed_c10d

from ds_llama.config.resolve import versions
from ds_llama.errors import DsLlamaError, RunError
from ds_llama.selftest.cells import Cell, select
from ds_llama.selftest.compare import compare, reason_not_to_run, remember_processor
from ds_llama.selftest.outcome import ERROR, NOT_RUN, Outcome, merge, row
from ds_llama.selftest.sabotage import SABOTAGES, Sabotage
from ds_llama.zero import world

PATIENCE = timedelta(minutes=2)


def run_rank(folder: Path, say: Callable[[str], None] = lambda line: None) -> None:
    """Run the cells of `plan.json` one after the other; rank 0 writes the rows.

    `say` is told on rank 0 which cell is on. A cell's error is its row, and the next cell is begun
    if every rank came out of it; RunError, on the ranks that did, if one stays behind.
    """
    plan = json.loads((folder / "plan.json").read_text())
    remember_processor()
    world.join()
    if world.rank() == 0:
        (folder / "about.json").write_text(json.dumps(_about()))
    cells = {cell.name: cell for cell in select([])}
    for number, name in enumerate(plan["cells"]):
        if world.rank() == 0:
            say(f"{number + 1}/{len(plan['cells'])} {name}")
        mine = attempt(cells[name], folder / name, SABOTAGES.get(plan["sabotage"]))
        outcome = merge(everyones(number, name, mine))
        if world.rank() == 0:
            with (folder / "rows.jsonl").open("a") as out:
                out.write(json.dumps(row(cells[name], outcome)) + "\n")
            shutil.rmtree(folder / name, ignore_errors=True)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def attempt(cell: Cell, folder: Path, sabotage: Sabotage | None) -> Outcome:
    """What the cell came to on this rank; never raises."""
    reason = reason_not_to_run(cell)
    if reason is not None:
        return Outcome(NOT_RUN, reason=reason)
    start = time.perf_counter()
    try:
        gaps = compare(cell, folder, sabotage)
    except Exception as error:
        seconds = time.perf_counter() - start
        return Outcome(ERROR, reason=_described(error), seconds=seconds)
    return Outcome.judge(gaps, cell.limits, time.perf_counter() - start)


def everyones(
    number: int, name: str, mine: Outcome, patience: timedelta = PATIENCE
) -> list[Outcome]:
    """Every rank's outcome of a cell, exchanged through the store that the ranks met at.

    Not by a collective, which a rank that is stuck in the cell would take for one of its own.
    Raises RunError when a rank has not come out of the cell in time.
    """
    store, size = distributed_c10d._get_default_store(), world.world_size()
    keys = [f"ds_llama/selftest/{number}/{rank}" for rank in range(size)]
    store.set(keys[world.rank()], json.dumps(mine.to_dict()))
    try:
        store.wait(keys, patience)
    except RuntimeError as error:
        raise RunError(
            f"rank {world.rank()} came out of a cell ({mine.reason or mine.verdict}), and another "
            f"did not within {patience.total_seconds():g} s",
            where=name,
            remedy=f"run it alone: ds-llama selftest --nproc {size} --only {name}",
        ) from error
    return [Outcome.from_dict(json.loads(store.get(key))) for key in keys]


def _described(error: Exception) -> str:
    """One line: what, and the innermost place that an unknown error came from."""
    if isinstance(error, DsLlamaError):
        return f"{error.what} ({error.where})"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    what = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")
    return f"{what} ({Path(frame.filename).name}:{frame.lineno})"


def _about() -> dict[str, Any]:
    accelerator = get_accelerator()
    device = accelerator.device_name()
    if device == "cuda":
        device = torch.cuda.get_device_name()
    return {
        "world_size": world.world_size(),
        "device": device,
        "versions": versions() | {"python": sys.version.split()[0]},
    }
