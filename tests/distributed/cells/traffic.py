"""What two ranks move in a step, against numbers worked out by hand of the parameters alone.

P, the model's parameters, is padded nowhere at two ranks. That the simulator moves the same, to the
byte, is in the cells of `accounting`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ds_llama.config import LlamaConfig
from ds_llama.measure import theory
from ds_llama.planner.traffic import traffic
from ds_llama.selftest import memory
from ds_llama.selftest.cells import Cell
from ds_llama.zero import world
from ds_llama.zero.register import resolve_here

CONFIG = LlamaConfig(**memory.MODEL)
P = CONFIG.num_parameters
OWNER_ALONE = {"use_multi_rank_bucket_allreduce": False}
NOTHING_KEPT = {
    "stage3_param_persistence_threshold": 0,
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 0,
}
# Bytes of each kind of collective in P, and why they are not the paper's.
BY_HAND: dict[str, tuple[Cell, dict[str, Any], dict[str, int], set[str]]] = {
    "stage0": (Cell("fp32", 0, accumulation=2), {}, {"all_reduce": 4}, set()),
    "stage1": (
        Cell("fp32", 1, accumulation=2),
        {},
        {"all_reduce": 4, "all_gather": 4},
        {theory.EVERY_RANK},
    ),
    "stage2": (
        Cell("fp32", 2, accumulation=2),
        {},
        {"all_reduce": 2 * 4, "all_gather": 4},
        {theory.EVERY_RANK, theory.EACH_MICRO_BATCH},
    ),
    # A bf16 run that accumulates sends and sums its gradients in fp32.
    "bf16": (
        Cell("bf16", 2, accumulation=2),
        {},
        {"all_reduce": 2 * 4, "all_gather": 2},
        {theory.EVERY_RANK, theory.EACH_MICRO_BATCH, theory.WIDER},
    ),
    "owner": (Cell("bf16", 2), OWNER_ALONE, {"reduce": 2, "all_gather": 2}, set()),
    "stage3": (Cell("bf16", 3), NOTHING_KEPT, {"all_gather": 4, "reduce_scatter": 2}, set()),
}


def by_hand(folder: Path, *, name: str) -> None:
    cell, more, wanted, causes = BY_HAND[name]
    zero = cell.deepspeed(str(folder))["zero_optimization"] | more
    run = memory.memory_run(cell, folder, world.world_size(), zero_optimization=zero)
    found = memory.measure(run)
    moved = found["moved"]
    assert moved["collectives"] == {kind: each * P for kind, each in wanted.items()}
    assert moved["wire_bytes"] == {
        kind: size // 2 * (2 if kind == "all_reduce" else 1)
        for kind, size in moved["collectives"].items()
    }
    if name != "owner":  # a call for each rank that owns some of a bucket
        assert sum(moved["calls"].values()) == traffic(resolve_here(run)).calls, moved["calls"]
    assert 0 < moved["control_bytes"] < P // 1000, moved
    assert moved["to_device_bytes"] == moved["to_host_bytes"] == 0  # host and device are one
    paper = found["theory"]
    assert paper["gaps"].keys() == causes, paper
    assert paper["measured_bytes"] == moved["volume_bytes"]
    tokens = cell.accumulation * memory.MICRO * memory.TOKENS
    assert found["flops"] == CONFIG.flops_per_token(memory.TOKENS) * tokens


CELLS = {name: ((2,), partial(by_hand, name=name)) for name in BY_HAND}
