"""Cells of a case in turn, step by step, in the same processes: A B C A B C.

    deepspeed --num_accelerators 2 benchmarks/peers/in_turn.py benchmarks/cases/peers.json \
        --model h512-v32k --length 512 [--only 'zero3*' --only '*:fsdp2*'] [--out ROWS.jsonl]

`ds-llama bench` launches every cell in processes of its own, which is how a cell is measured; a
machine that drifts from minute to minute then needs many launches before a small difference shows.
Here the cells that are compared meet the same minute: each trains its own model on the same batch,
and the ratio is the median of the pairs'. What this costs in truth: one allocator for all, and no
memory figures. Wall time is between barriers; CPU seconds are the rank's, all threads, which a
busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ds_llama.bench import machine, runs
from ds_llama.bench.case import OURS, Case, Cell, read_case
from ds_llama.bench.program import Program, open_program
from ds_llama.bench.rank import open_loader
from ds_llama.config import load_run
from ds_llama.zero import register, world

WARM_STEPS = 2


def main() -> None:
    options = _options()
    # This folder, which Python has put there, has a litgpt.py that is not litgpt.
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).parent]
    world.join()
    case = read_case(options.case)
    cells = [cell for cell in case.expanded if _wanted(cell, options)]
    assert cells, "no cell of the case has this model, length and number of processes"
    if world.rank() == 0:
        runs.write_data(case, cells, options.folder)
    dist.barrier()
    row = measure(case, cells, options)
    if world.rank() == 0:
        print(_table(row), flush=True)
        if options.out:
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
    dist.barrier()
    dist.destroy_process_group()


def measure(case: Case, cells: list[Cell], options: argparse.Namespace) -> dict[str, Any]:
    """Losses, wall and CPU seconds of every step of every cell; rank 0's."""
    folder, base = options.folder, options.case.parent
    programs = {cell.name: _open(case, cell, folder, base) for cell in cells}
    found: dict[str, dict[str, list[float]]] = {
        name: {"loss": [], "wall_s": [], "cpu_s": []} for name in programs
    }
    resolved = register.resolve_here(load_run(runs.run_json(case, cells[0], folder)))
    with open_loader(resolved) as loader:
        for _ in range(WARM_STEPS + options.steps):
            window = next(loader)
            for name, program in programs.items():
                dist.barrier()
                wall, cpu = time.perf_counter(), time.process_time()
                loss, _ = program.step(window)
                dist.barrier()
                own = found[name]
                own["wall_s"].append(time.perf_counter() - wall)
                own["cpu_s"].append(time.process_time() - cpu)
                own["loss"].append(loss)
    first = cells[0]
    return {
        "model": first.model_name,
        "sequence_length": first.sequence_length,
        "micro_batch_size": first.micro_batch_size,
        "world_size": first.world_size,
        "stage": first.stage,
        "precision": first.precision,
        "provenance": machine.provenance(sys.argv, world.device().type),
        "warm_steps": WARM_STEPS,
        "cells": found,
        "ratio_to_first": {name: _ratios(found[cells[0].name], found[name]) for name in found},
    }


def _open(case: Case, cell: Cell, folder: Path, base: Path) -> Program:
    resolved = register.resolve_here(load_run(runs.run_json(case, cell, folder)))
    name = cell.program if cell.program == OURS else str(base / cell.program)
    return open_program(name, resolved, {"compile": cell.compile})


def _ratios(first: dict[str, list[float]], own: dict[str, list[float]]) -> dict[str, float]:
    return {
        key: statistics.median(
            b / a for a, b in zip(first[key][WARM_STEPS:], own[key][WARM_STEPS:], strict=True)
        )
        for key in ("wall_s", "cpu_s")
    }


def _table(row: dict[str, Any]) -> str:
    lines = [f"{row['model']}, {row['sequence_length']} tokens, {row['world_size']} processes"]
    for name, own in row["cells"].items():
        median = {key: statistics.median(own[key][WARM_STEPS:]) for key in ("wall_s", "cpu_s")}
        ratio = row["ratio_to_first"][name]
        lines.append(
            f"  {name:60} {median['wall_s']:7.3f} s ({ratio['wall_s']:.3f} x)"
            f"  {median['cpu_s']:7.3f} CPU s ({ratio['cpu_s']:.3f} x)  loss {own['loss'][-1]:.5f}"
        )
    return "\n".join(lines)


def _wanted(cell: Cell, options: argparse.Namespace) -> bool:
    same = cell.model_name == options.model and cell.sequence_length == options.length
    fits = cell.world_size == world.world_size()
    chosen = not options.only or any(fnmatchcase(cell.name, only) for only in options.only)
    return same and fits and chosen


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("case", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("in_turn_data"))
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
