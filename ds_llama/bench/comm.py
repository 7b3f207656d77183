"""What collectives reach on this machine's links, and what that means for a step of each stage.

    FOLDER/plan.json     {"series": [[collective, dtype], …], "sizes": [bytes, …], "budget_s"}
    FOLDER/result.json   {"device", "backend", "world_size", "timed": […]}; written by rank 0

The link is what neighbours reach who send and receive at a time (`send_recv`), which is all that
the ranks of a ring do. No torch in this module but in a rank.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ds_llama.bench.rows import quantile
from ds_llama.measure import bus

LINK = "send_recv"
# What only moves is timed in one dtype, what adds up in those that gradients are sent in.
MOVING = (LINK, "all_gather", "broadcast", "all_to_all")
ADDING = ("all_reduce", "reduce_scatter", "reduce")
SMALL_BYTES = 4096
SIZES = (SMALL_BYTES, 2**16, 2**20, 2**24, 2**26, 2**28)
BUDGET_S = 12.0  # with the start of the ranks, all of it is under 20 s


def series(gathered: str, reduced: str) -> list[tuple[str, str]]:
    """Every (collective, dtype); gathered, reduced: dtypes of a run's weights and gradients.

    What adds is timed in fp32 too, which is what `communication_data_type` is for.
    """
    dtypes = dict.fromkeys((reduced, "fp32"))
    return [(kind, gathered) for kind in MOVING] + [(k, d) for k in ADDING for d in dtypes]


def run_rank(folder: Path, say: Callable[[str], None] = lambda line: None) -> None:
    """Measure what FOLDER/plan.json says; collective. `say` is told on rank 0 what is on."""
    import torch

    from ds_llama.measure.links import Links
    from ds_llama.zero import world

    plan = json.loads((folder / "plan.json").read_text())
    world.join()
    device, first = world.device(), world.rank() == 0
    links = Links(device, math.inf if plan["budget_s"] is None else plan["budget_s"])
    found = links.measure(plan["series"], plan["sizes"], say if first else _mute)
    timed = [vars(each) for each in found]
    if first:
        say("")
        name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
        backend = torch.distributed.get_backend()
        result = {"device": name, "backend": backend, "world_size": world.world_size()}
        (folder / "result.json").write_text(json.dumps({**result, "timed": timed}))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def document(result: dict[str, Any]) -> dict[str, Any]:
    """`comm.json` without its stages, out of what rank 0 wrote."""
    ranks = result["world_size"]
    timed = [each for each in result["timed"] if each["samples_s"] is not None]
    rows = [row(each, ranks) for each in timed]
    found = link(rows)
    for each in rows:
        crossing = bus.factor(each["collective"], ranks) * each["bytes"]
        each["ring_s"] = crossing / found["bytes_per_s"] if found else None
    left_out = [
        {name: each[name] for name in ("collective", "dtype", "bytes", "reason")}
        for each in result["timed"]
        if each["samples_s"] is None
    ]
    about = {name: result[name] for name in ("device", "world_size", "backend")}
    return {**about, "rows": rows, "left_out": left_out, "link": found}


def row(timed: dict[str, Any], ranks: int) -> dict[str, Any]:
    """One collective at one size: seconds of a call, and both bandwidths of the median."""
    samples = timed["samples_s"]
    seconds = {name: quantile(samples, share) for name, share in _QUANTILES.items()}
    algorithm = timed["bytes"] / seconds["median"]
    return {
        "collective": timed["collective"],
        "bytes": timed["bytes"],
        "dtype": timed["dtype"],
        "calls": timed["calls"] * len(samples),
        "seconds": seconds,
        "algorithm_bytes_per_s": algorithm,
        "bus_bytes_per_s": algorithm * bus.factor(timed["collective"], ranks),
    }


_QUANTILES = {"median": 0.5, "p10": 0.1, "p90": 0.9}


def link(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The most that neighbours reach, with which message, and what a small one takes."""
    sent = [each for each in rows if each["collective"] == LINK]
    if not sent:
        return None
    best = max(sent, key=lambda each: each["bus_bytes_per_s"])
    small = min(sent, key=lambda each: each["bytes"])
    return {
        "bytes_per_s": best["bus_bytes_per_s"],
        "bytes": best["bytes"],
        "latency_s": small["seconds"]["median"],
        "latency_bytes": small["bytes"],
    }


def _mute(line: str) -> None:
    pass
