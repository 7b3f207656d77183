"""Bytes of every phase, measured and simulated, over the matrix of stages, offloads and precisions.

    python benchmarks/memory_matrix.py [--worlds 1,2,4] [--only PATTERN …] [--out FILE]
    python benchmarks/memory_matrix.py --from FILE          simulate again what FILE has measured

Every cell is trained for two steps on gloo processes with an Account around it, and simulated with
the CPU as its device. The table says how far apart the two are, per phase, at its end and at its
peak; FILE holds both, with what the bytes are for, of rank 0, and the largest of any rank.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from fnmatch import fnmatch
from itertools import product
from pathlib import Path
from typing import Any

from ds_llama.config.resolve import versions
from ds_llama.selftest.cells import OFFLOADS, STAGES, Cell
from ds_llama.selftest.memory import PARTS, Difference, differences, measure, memory_run
from ds_llama.simulator.process import Simulator
from ds_llama.simulator.result import Request, Simulation

RESULT = Path(__file__).parent / "results" / "memory_matrix.json"
BOUND = 0.005
Row = dict[str, Any]


def cells(patterns: Sequence[str]) -> list[Cell]:
    """Every cell that runs on a CPU, of those whose name has one of the patterns."""
    found = [
        Cell(precision, stage, offload, recompute, accumulation)
        for precision, stages in STAGES.items()
        for stage in stages
        for offload, recompute, accumulation in product(OFFLOADS[stage], (False, True), (1, 2))
    ]
    wanted = [f"*{pattern}*" for pattern in patterns or ["*"]]
    return [cell for cell in found if any(fnmatch(cell.name, pattern) for pattern in wanted)]


def measure_all(folder: Path, patterns: Sequence[str]) -> None:
    """One rank of a launch: a line a cell in FOLDER/rank-N.jsonl."""
    import gc

    import torch
    from deepspeed.accelerator import get_accelerator

    from ds_llama.selftest.compare import remember_processor
    from ds_llama.zero import world

    torch.set_num_threads(1)
    get_accelerator().is_fp16_supported = lambda: True  # torch computes it here, only slowly
    remember_processor()
    world.join()
    with (folder / f"rank-{world.rank()}.jsonl").open("w") as out:
        for cell in cells(patterns):
            gc.collect()
            gc.freeze()
            found = measure(memory_run(cell, folder / cell.name, world.world_size()))
            print(json.dumps({"cell": cell.name, **found}), file=out, flush=True)
            torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def measured(world: int, patterns: Sequence[str]) -> list[Row]:
    """A row a cell: rank 0's phases, and what is the largest of any rank."""
    folder = Path(tempfile.mkdtemp(prefix="ds-llama-memory-"))
    words = [__file__, "--rank", str(folder), *(w for p in patterns for w in ("--only", p))]
    root = str(Path(__file__).parents[1])
    env = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    with (folder / "log.txt").open("w") as log:
        code = subprocess.call(
            [sys.executable, "-m", *launcher, *words], env=env, stdout=log, stderr=log
        )
    if code:
        print((folder / "log.txt").read_text()[-3000:], file=sys.stderr)
    ranks = [
        [json.loads(line) for line in (folder / f"rank-{rank}.jsonl").read_text().splitlines()]
        for rank in range(world)
    ]
    return [_row(world, list(same)) for same in zip(*ranks, strict=False)]


def _row(world: int, ranks: list[Row]) -> Row:
    cell = next(c for c in cells([]) if c.name == ranks[0]["cell"])
    largest = {
        key: {
            phase["name"]: {
                what: max(rank[key][index]["total"][what] for rank in ranks)
                for what in ("now_bytes", "peak_bytes")
            }
            for index, phase in enumerate(ranks[0][key])
        }
        for key in PARTS
    }
    own = {key: ranks[0][key] for key in PARTS}
    return {"world_size": world, **cell.to_dict(), "measured": own, "largest": largest}


def simulate_into(rows: list[Row], jobs: int) -> None:
    """Add what the simulator says of rank 0 to every row, or why it could not."""
    with Simulator() as simulator:
        for start in range(0, len(rows), jobs):
            some = rows[start : start + jobs]
            for row, outcome in zip(some, simulator.outcomes(_requests(some), jobs), strict=True):
                row["error"] = None if isinstance(outcome, Simulation) else str(outcome)
                if isinstance(outcome, Simulation):
                    found = outcome.to_dict()
                    row["simulated"] = {
                        key: [_total(phase) for phase in found[key]] for key in PARTS
                    }
                worst = max((abs(gap.share) for gap in _gaps(row)), default=float("nan"))
                print(f"{worst:9.4%}  {row['cell']} world {row['world_size']}", flush=True)


def _total(phase: Row) -> Row:
    sizes = {what: phase["total"][what] for what in ("now_bytes", "peak_bytes")}
    return {"name": phase["name"], "total": sizes}


def _requests(rows: list[Row]) -> list[Request]:
    folder = Path(tempfile.gettempdir()) / "ds-llama-memory-simulated"
    named = {cell.name: cell for cell in cells([])}
    runs = [memory_run(named[r["cell"]], folder / r["cell"], r["world_size"]) for r in rows]
    pairs = zip(runs, rows, strict=True)
    return [Request(run, row["world_size"], device="cpu") for run, row in pairs]


def _gaps(row: Row) -> list[Difference]:
    return list(differences(row["measured"], row["simulated"])) if row.get("simulated") else []


def report(rows: list[Row]) -> str:
    """A line a phase: worst and median difference; then the cells beyond 0.5 %."""
    found: dict[tuple[str, str], list[float]] = {}
    beyond, whole = [], [row for row in rows if row.get("simulated")]
    for row in whole:
        for gap in _gaps(row):
            found.setdefault((gap.phase, gap.what), []).append(abs(gap.share))
            if abs(gap.share) > BOUND:
                where = f"{row['cell']} world {row['world_size']} {gap.phase} {gap.what}"
                size = gap.simulated_bytes - gap.measured_bytes
                beyond.append(f"{gap.share:+8.3%} {size:+10d} B  {where}")
    lines = [f"{'phase':18} {'':4} {'worst':>9} {'median':>9}   of {len(whole)} cells"]
    for (name, what), shares in found.items():
        lines.append(f"{name:18} {what:4} {max(shares):9.4%} {statistics.median(shares):9.4%}")
    failed = [f"{row['cell']} world {row['world_size']}: {row.get('error')}" for row in rows]
    lines += [*beyond, *(line for line, row in zip(failed, rows, strict=True) if row.get("error"))]
    return "\n".join(lines)


def save(rows: list[Row], path: Path) -> None:
    """A row a line, so that a change of a cell is a change of a line."""
    head = json.dumps({"versions": versions(), "rows": []})[:-2]
    path.write_text(head + "\n" + ",\n".join(map(json.dumps, rows)) + "\n]}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", default="1,2,4", help="world sizes, by commas")
    parser.add_argument("--only", action="append", default=[], help="cells with this in their name")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--from", dest="source", type=Path, help="measured before")
    parser.add_argument("--jobs", type=int, default=1, help="simulations at a time")
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.rank:
        measure_all(chosen.rank, chosen.only)
        return
    if chosen.source:
        if not chosen.source.is_file():
            parser.error(f"--from {chosen.source}: there is no such file")
        wanted = {cell.name for cell in cells(chosen.only)}
        rows = json.loads(chosen.source.read_text())["rows"]
        rows = [row for row in rows if row["cell"] in wanted]
    else:
        rows = [row for w in chosen.worlds.split(",") for row in measured(int(w), chosen.only)]
    save(rows, chosen.out)  # what was measured is kept whatever happens to the simulations
    simulate_into(rows, chosen.jobs)
    save(rows, chosen.out)
    print(report(rows))


if __name__ == "__main__":
    main()
