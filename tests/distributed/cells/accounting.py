"""What the simulator says against what a run really holds: within 0.5 % at every phase.

What a step moves, call by call, and what it computes, agree to the byte and the FLOP.

The short form of `benchmarks/memory_matrix.py`, which has every cell: here each stage, offload,
precision, recomputation and accumulation is in a cell at some world size.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ds_llama.selftest.cells import Cell
from ds_llama.selftest.memory import differences, measure, memory_run
from ds_llama.simulator.process import simulate_many
from ds_llama.simulator.result import Request
from ds_llama.zero import world

BOUND = 0.005
CHOSEN = {
    1: [
        Cell("fp32", 0, accumulation=2),
        Cell("bf16", 1, accumulation=2),
        Cell("bf16", 2, "optimizer"),
        Cell("bf16", 3, "all", recompute=True, accumulation=2),
    ],
    2: [
        Cell("fp32", 1, recompute=True),
        Cell("fp16", 2, accumulation=2),
        Cell("bf16", 3),
        Cell("fp32", 3, "parameters"),
    ],
    4: [Cell("bf16", 1, "optimizer"), Cell("fp16", 3, "optimizer", recompute=True)],
}


def simulated(requests: list[Request]) -> list[dict[str, Any]]:
    """Rank 0 simulates, and every rank gets the answer."""
    answer: list[Any] = [None]
    if world.rank() == 0:
        answer = [[found.to_dict() for found in simulate_many(requests)]]
    torch.distributed.broadcast_object_list(answer)
    return list(answer[0])


def agrees(folder: Path) -> None:
    """Every chosen cell of this world, on every rank whose share is rank 0's."""
    size = world.world_size()
    runs = [memory_run(cell, folder / cell.name, size) for cell in CHOSEN[size]]
    found = [measure(run) for run in runs]
    requests = [Request(run, size, device="cpu") for run in runs]
    wrong = {"grad_accum_dtype": "bf16"}
    if size == 1:  # the sabotage: a simulator that sums bf16's gradients in bf16
        sums = memory_run(CHOSEN[1][1], folder / "wrong", size, data_types=wrong)
        requests.append(Request(sums, size, device="cpu"))
    answers = simulated(requests)
    if world.rank() == 0:
        for cell, real, fake in zip(CHOSEN[size], found, answers, strict=False):
            for gap in differences(real, fake):
                assert abs(gap.share) <= BOUND, (cell.name, gap)
            for key in ("theory", "flops", "hardware_flops"):
                assert real[key] == fake[key], (cell.name, key, real[key], fake[key])
            # The simulator leaves out stage 3's comparison of ranks, which is lists of integers.
            there, here = ({**each["moved"], "control_bytes": None} for each in (real, fake))
            assert there == here, (cell.name, there, here)
        if size == 1:
            gaps = list(differences(found[1], answers[-1]))
            assert any(abs(gap.share) > 10 * BOUND for gap in gaps)


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
