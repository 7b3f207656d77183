"""What a rank of a benchmark writes of a cell, on two ranks: parts, traffic, memory, tokens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from ds_llama.bench import rank, rows
from ds_llama.bench.case import Case, Cell, parse_case
from ds_llama.bench.runs import Prepared, run_json, swap_folder
from ds_llama.config import load_run
from ds_llama.measure import rates
from ds_llama.measure.timers import StepTimer
from ds_llama.measure.waits import Waits
from ds_llama.planner.memory import memory
from ds_llama.selftest import memory as larger
from ds_llama.zero import register, world

PARTS = {"data", "forward", "backward", "reduce", "gather", "optimizer", "other"}
STEPS, WARMUP, TOKENS = 3, 1, larger.TOKENS
GEMM = 1e11


def rows_of_stages(folder: Path) -> None:
    """Stages 2 and 3: what is in the row was measured, and agrees with what is known."""
    sweep = {"model": larger.MODEL, "stage": [2, 3], "sequence_length": TOKENS, "world_size": 2}
    case = parse_case({"sweep": sweep, "steps": STEPS, "warmup_steps": WARMUP}, "case")
    for cell in case.expanded:
        check(*measure(case, cell, folder))
    speed = parse_case({**case.model_dump(mode="json"), "measure": []}, "case")
    check_speed_alone(measure(speed, speed.expanded[0], folder)[0])


def measure(case: Case, cell: Cell, folder: Path) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """The cell's row, what rank 0 wrote, the run."""
    resolved = register.resolve_here(load_run(run_json(case, cell, folder)))
    plan = {
        "cell": cell.to_dict(),
        "program": cell.program,
        "warmup_steps": case.warmup,
        "steps": case.steps,
        "measure": case.measure,
        "profile": None,
    }
    with mock.patch.object(rates, "best_matmul", return_value=GEMM):
        found = rank.Measurement(plan, resolved, windows(resolved)).everything()
    prepared = Prepared(resolved.run, resolved, memory(resolved))
    return rows.complete(cell, prepared, [found]), found, resolved


def windows(resolved: Any) -> Iterator[Any]:
    step = 0
    while True:
        yield larger.window(step, resolved)
        step += 1


def check(row: dict[str, Any], found: dict[str, Any], resolved: Any) -> None:
    parts, parameters = row["parts_s"], resolved.model.num_parameters
    assert parts.keys() == PARTS, parts
    assert all(parts[name] > 0 for name in PARTS), parts
    assert abs(sum(parts.values()) - row["parts_step_s"]) < 1e-9
    assert row["tokens_per_step"] == 2 * (TOKENS - 1)
    assert len(found["step_s"]) == len(found["data_wait_s"]) == STEPS
    # Every step is in the losses, and those that are taken before the measured ones are equally
    # many at every stage; all ranks have all figures.
    assert len(row["losses"]) == len(row["grad_norms"]) == rank.COUNTED_STEPS + WARMUP + STEPS
    assert row["losses"][-1] < row["losses"][0] < 9
    moved = row["traffic"]
    reduced = "all_reduce" if resolved.stage == 2 else "reduce_scatter"
    assert moved["collectives"][reduced] == 2 * parameters, moved
    assert moved["collectives"]["all_gather"] >= 2 * parameters
    assert moved["planned"]["collectives"] == moved["collectives"]
    memory = row["memory"]
    for name in ("device_peak_bytes", "device_steady_bytes", "total_peak_bytes"):
        planned, held = (memory[of][name] for of in ("predicted", "measured"))
        assert abs(planned / held - 1) < 0.005, (resolved.stage, name, planned, held)
    names = [phase["name"] for phase in memory["measured"]["phases"]]
    assert names == ["construct", "initialise", "first", "forward", "backward", "step"]
    for name in ("process", "process_at_start"):
        assert memory[name]["peak_rss_bytes"] >= memory[name]["rss_bytes"] > 2**27, memory
    assert 1 <= row["hfu"] / row["mfu"] < 1.2  # no recomputation: the scores alone
    assert abs(row["mfu"] * GEMM * 2 / row["tokens_per_s"] / flops(resolved) - 1) < 1e-9
    assert len(row["config"]["affinity"]) == 2


def check_speed_alone(row: dict[str, Any]) -> None:
    """No step is taken but those before the measured ones and those."""
    assert len(row["losses"]) == WARMUP + STEPS
    assert row["step_s"]["steps"] == STEPS
    assert row["mfu"] > 0
    assert row["memory"]["process"]["peak_rss_bytes"] > 2**27
    assert row["memory"]["process_at_start"]["peak_rss_bytes"] > 2**27
    assert row["memory"]["measured"] is row["parts_s"] is row["traffic"] is row["hfu"] is None


def parts_on_nvme(folder: Path) -> None:
    """What waits for NVMe is a part of its own; it is none where nothing is swapped (`PARTS`)."""
    sweep = {"model": larger.MODEL, "stage": 3, "offload": "nvme-all", "sequence_length": TOKENS}
    steps = {"steps": 1, "warmup_steps": 1, "measure": ["parts"]}
    case = parse_case({"sweep": {**sweep, "world_size": 2}, **steps}, "case")
    (cell,) = case.expanded
    (swap_folder(case, cell, folder) / "swap").mkdir(parents=True, exist_ok=True)
    row, *_ = measure(case, cell, folder)
    parts = row["parts_s"]
    assert parts.keys() == PARTS | {"nvme"}, parts
    assert all(parts[name] > 0 for name in PARTS | {"nvme"}), parts
    assert abs(sum(parts.values()) - row["parts_step_s"]) < 1e-9


def flops(resolved: Any) -> float:
    return float(resolved.model.flops_per_token(TOKENS))


def waits(folder: Path) -> None:
    """A collective that nobody waits for is waited for; a rank that is late makes none longer."""
    timer, data = StepTimer(wait_at_parts=True), torch.ones(2**20)
    flag, out = torch.ones(1, dtype=torch.int64), torch.empty(2**21)
    with timer, Waits(timer, lambda: None):
        dist.barrier()  # entering it may import torch's compiler, on each rank as fast as it can
        timer.open()
        if world.rank() == 0:
            time.sleep(0.3)
        dist.all_reduce(flag)
        work = dist.all_reduce(data, async_op=True)
        gathered = dist.all_gather_into_tensor(out, data[: 2**20], async_op=True)
        timer.step()
        parts = timer.close().parts_s
    assert data.eq(2).all()
    assert out.eq(2).all()
    assert parts.keys() == {"other", "reduce", "gather"}
    assert all(seconds > 0 for seconds in parts.values()), parts
    assert (parts["other"] > 0.2) == (world.rank() == 1), parts
    assert parts["reduce"] + parts["gather"] < 0.2, parts
    work.wait()
    gathered.wait()


CELLS = {
    "rows": ((2,), rows_of_stages),
    "waits": ((2,), waits),
    "nvme-parts": ((2,), parts_on_nvme),
}
