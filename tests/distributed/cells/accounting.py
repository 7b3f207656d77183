"""What the simulator says against what a run really holds: within 0.5 % at every phase.

What a step moves, call by call, and what it computes, agree to the byte and the FLOP.

The short form of `benchmarks/memory_matrix.py`, which has every cell: here stages, precisions,
recomputation, accumulation and offload to the host are in a cell at some world size.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ds_llama.config.run import Run
from ds_llama.selftest.cells import Cell
from ds_llama.selftest.memory import differences, measure, memory_run
from ds_llama.simulator.process import simulate_many
from ds_llama.simulator.result import Request
from ds_llama.zero import world

BOUND = 0.005
CHOSEN = {
    1: [Cell("bf16", 1, accumulation=2), Cell("bf16", 3, "all", recompute=True, accumulation=2)],
    2: [Cell("fp32", 1, recompute=True), Cell("fp16", 2, accumulation=2), Cell("fp32", 3)],
    4: [Cell("bf16", 2, "optimizer")],
}


def agrees(folder: Path) -> None:
    """Every chosen cell of this world: rank 0 simulates its own share, and compares.

    The sabotage: a simulator that sums the first cell's gradients in bf16, where the run does in
    fp32, is off by far more.
    """
    size = world.world_size()
    runs = [memory_run(cell, folder / cell.name, size) for cell in CHOSEN[size]]
    found = [measure(run) for run in runs]
    if world.rank() > 0:
        return
    first = CHOSEN[size][0]
    wrong = memory_run(first, folder, size, data_types={"grad_accum_dtype": "bf16"})
    sabotaged = [wrong] if first.precision == "bf16" and first.accumulation > 1 else []
    answers = simulated([*runs, *sabotaged])
    for run, real, fake in zip(runs, found, answers, strict=False):
        for gap in differences(real, fake):
            assert abs(gap.share) <= BOUND, (run.output, gap)
        for key in ("theory", "flops", "hardware_flops"):
            assert real[key] == fake[key], (run.output, key, real[key], fake[key])
        # The simulator leaves out stage 3's comparison of ranks, which is lists of integers.
        there, here = ({**each["moved"], "control_bytes": None} for each in (real, fake))
        assert there == here, (run.output, there, here)
    if sabotaged:
        assert any(abs(gap.share) > 10 * BOUND for gap in differences(found[0], answers[-1]))


def simulated(runs: list[Run]) -> list[dict[str, Any]]:
    size = world.world_size()
    requests = [Request(run, size, device="cpu") for run in runs]
    return [simulation.to_dict() for simulation in simulate_many(requests)]


def two_runs_agree_to_the_byte(folder: Path) -> None:
    """Every number of every phase, by category; with collectives, whose buffers threads let go."""
    run = memory_run(Cell("bf16", 3, accumulation=2), folder, world.world_size())
    first, second = measure(run), measure(run)
    for key in first:
        assert first[key] == second[key], key


CELLS: dict[str, tuple[tuple[int, ...], Callable[[Path], None]]] = {
    "simulated": ((1, 2, 4), agrees),
    "twice": ((2,), two_runs_agree_to_the_byte),
}
