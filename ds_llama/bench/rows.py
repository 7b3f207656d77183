"""Rows: one a cell, with every launch of it as it was measured, and what they come to.

A row's `repeats` are raw. Everything beside them is made of them, and of the plan, by `complete`.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ds_llama.bench import version
from ds_llama.bench.case import Cell, digest
from ds_llama.bench.runs import Prepared
from ds_llama.commit import disk
from ds_llama.config.resolve import Resolved
from ds_llama.planner import traffic
from ds_llama.planner.memory import Memory

NAME = "rows.jsonl"
OK, FAILED = "ok", ("oom", "timeout", "error", "refused")
Row = dict[str, Any]


def read(out: Path) -> dict[str, Row]:
    """The rows of a benchmark's folder by cell key; a torn last line is no row.

    Raises DataError for the row of a later version of this package.
    """
    path, found = out / NAME, dict[str, Row]()
    if not path.exists():
        return found
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and "key" in row:
            version.require_known(row, f"{path}:{number}")
            found[row["key"]] = row
    return found


def write(out: Path, rows: Sequence[Row]) -> None:
    """Replace the folder's rows: what was there stays until all of this is on the disk."""
    text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
    disk.replace(out / NAME, text.encode())


def failed(cell: Cell, status: str, reason: str, rule: str | None = None, **more: Any) -> Row:
    """The row of a cell that was not measured, or whose last launch failed."""
    head = {**_head(cell), "status": status, "reason": reason, "rule": rule}
    return {**head, "repeats": [], **more}


def complete(cell: Cell, prepared: Prepared, repeats: list[dict[str, Any]]) -> Row:
    """The row of a cell that was measured so many times."""
    resolved = prepared.resolved
    seconds = [second for each in repeats for second in each["step_s"]]
    medians = [statistics.median(each["step_s"]) for each in repeats]
    last = repeats[-1]
    tokens = last["tokens_per_step"]
    step_s = statistics.median(seconds)
    peak = statistics.median(each["matmul_flops"] for each in repeats)
    per_device = tokens / step_s / resolved.world_size
    per_token = resolved.model.flops_per_token(resolved.run.data.sequence_length)
    counted = last.get("flops")
    again = counted["hardware"] / counted["model"] if counted else None
    mfu = per_device * per_token / peak
    return {
        **_head(cell),
        "status": OK,
        "reason": None,
        "rule": None,
        "parameters": resolved.model.num_parameters,
        "global_batch_size": resolved.global_batch_size,
        "tokens_per_step": tokens,
        "tokens_per_s": tokens / step_s,
        "tokens_per_s_per_device": per_device,
        "step_s": {
            "median": step_s,
            "p10": quantile(seconds, 0.1),
            "p90": quantile(seconds, 0.9),
            "steps": len(seconds),
            "medians": medians,
            "spread": (max(medians) - min(medians)) / step_s,
        },
        "data_wait_share": _share(repeats, "data_wait_s"),
        "imbalance": _middle(repeats, "imbalance"),
        "mfu": mfu,
        "hfu": None if again is None else mfu * again,
        "peak_flops": {"measured": peak, "vendor": _vendor(last, resolved.dtype)},
        "memory": _memory(prepared, last),
        **_parts(repeats),
        "profile": next((p for each in repeats[::-1] if (p := each.get("profile"))), None),
        "traffic": _traffic(resolved, last),
        "flops": counted,
        "loss": {"first": last["losses"][0], "last": last["losses"][-1]},
        "losses": last["losses"],
        "grad_norms": last["grad_norms"],
        "joules_per_token": _joules(repeats, tokens),
        "joules_of": last["joules_of"],
        "start_s": statistics.median(each["start_s"] for each in repeats),
        "config": {
            "seed": resolved.run.train.seed,
            "warmup_steps": last["warmup_steps"],
            "measure": last["measure"],
            "threads": last["threads"],
            "affinity": last["affinity"],
            "device": last["device"],
            "deepspeed_hash": digest(resolved.deepspeed),
            "run": resolved.to_json(),
        },
        "repeats": repeats,
    }


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie, between neighbours linearly."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def _head(cell: Cell) -> Row:
    return {version.KEY: version.FORMAT, "key": cell.key, **cell.to_dict()}


def _memory(prepared: Prepared, last: dict[str, Any]) -> dict[str, Any]:
    """What was planned beside what was held, by the rank that held most.

    On a CPU device and host are one: everything is `device` there, planned and measured, and is
    the plan's `total`.
    """
    whole = last["device"] == "cpu"
    return {
        "predicted": _predicted(prepared.memory, whole=whole),
        "measured": None if last["phases"] is None else _measured(last["phases"]),
        "process": last["process"],
        "process_at_start": last["process_at_start"],
    }


def _predicted(planned: Memory, *, whole: bool) -> dict[str, Any]:
    step = planned.phases["step"]
    peaks = {phase.total.peak.total: name for name, phase in planned.phases.items()}
    peak, steady = planned.device_peak, planned.device_steady
    if whole:
        peak, steady = planned.total_peak, step.total.now
    return {
        "device_peak_bytes": peak.total,
        "device_steady_bytes": steady.total,
        "host_peak_bytes": 0 if whole else planned.host_peak_bytes,
        "total_peak_bytes": planned.total_peak_bytes,
        "total_steady_bytes": step.total.now.total,
        # The first update is in a plan's peaks, and no phase of it.
        "peak_phase": peaks.get(peak.total, "first") if whole else planned.peak_phase,
        "steady_terms": steady.to_dict(),
        "peak_terms": peak.to_dict(),
    }


def _measured(phases: list[dict[str, Any]]) -> dict[str, Any]:
    worst = max(phases, key=lambda phase: phase["device"]["peak_bytes"])
    last = phases[-1]
    return {
        "device_peak_bytes": worst["device"]["peak_bytes"],
        "device_steady_bytes": last["device"]["now_bytes"],
        "host_peak_bytes": max(phase["host"]["peak_bytes"] for phase in phases),
        "total_peak_bytes": max(phase["total"]["peak_bytes"] for phase in phases),
        "total_steady_bytes": last["total"]["now_bytes"],
        "peak_phase": worst["name"],
        "steady_terms": last["device"]["now"],
        "peak_terms": worst["device"]["peak"],
        "phases": phases,
    }


def _traffic(resolved: Resolved, last: dict[str, Any]) -> dict[str, Any] | None:
    """What rank 0 moved in a step, and what the plan says that a rank moves.

    Between host and device nothing moves on a CPU, where the two are one.
    """
    if last.get("traffic") is None:
        return None
    planned = traffic.traffic(resolved).to_dict()
    if last["device"] == "cpu":
        planned |= {"to_device_bytes": 0, "to_host_bytes": 0, "host_link_bytes": 0}
    return {**last["traffic"], "planned": planned}


def _parts(repeats: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median launch's parts of a step, and their sum's; None where the case wants none."""
    found = [each["parts_s"] for each in repeats if each["parts_s"] is not None]
    if not found:
        return {"parts_s": None, "parts_step_s": None}
    names = dict.fromkeys(name for each in found for name in each)
    parts = {name: statistics.median(each.get(name, 0.0) for each in found) for name in names}
    return {"parts_s": parts, "parts_step_s": statistics.median(e["parts_step_s"] for e in repeats)}


def _share(repeats: Sequence[dict[str, Any]], name: str) -> float:
    waited = sum(sum(each[name]) for each in repeats)
    return waited / sum(sum(each["step_s"]) for each in repeats)


def _middle(repeats: Sequence[dict[str, Any]], name: str) -> float | None:
    found = [each for repeat in repeats for each in repeat.get(name, ()) if each is not None]
    return statistics.median(found) if found else None


def _joules(repeats: Sequence[dict[str, Any]], tokens: int) -> float | None:
    known = [each for each in repeats if each["joules"] is not None]
    if not known:
        return None
    return sum(each["joules"] for each in known) / (tokens * sum(len(e["step_s"]) for e in known))


def _vendor(last: dict[str, Any], dtype: str) -> float | None:
    from ds_llama.planner.hardware import peak_flops

    return None if last["device"] == "cpu" else peak_flops(last["device"], dtype)
