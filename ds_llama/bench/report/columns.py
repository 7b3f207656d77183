"""rows.csv: a line a cell, failed ones too; bytes, seconds and shares as plain numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from ds_llama.bench.report import limits
from ds_llama.bench.report.groups import Group
from ds_llama.bench.report.row import Cell

_CELL = (
    *("key", "program", "model_name", "strategy", "stage", "offload", "precision", "recompute"),
    *("compile", "micro_batch_size", "accumulation", "sequence_length", "world_size"),
    *("global_batch_size", "status", "rule", "reason"),
)
_MEASURED = (
    *("parameters", "tokens_per_step", "tokens_per_s", "tokens_per_s_per_device", "mfu", "hfu"),
    *("data_wait_share", "imbalance", "joules_per_token", "start_s"),
)
_SIDE = ("device_peak_bytes", "device_steady_bytes", "host_peak_bytes")


def text(groups: Sequence[Group]) -> str:
    """The file. What was not measured is empty."""
    lines = [(group, cell) for group in groups for cell in (*group.cells, *group.failed)]
    found = [_line(group, cell) for group, cell in lines]
    heads = dict.fromkeys(head for line in found for head in line)
    out = io.StringIO()
    writer = csv.DictWriter(out, heads, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return out.getvalue()


def _line(group: Group, cell: Cell) -> dict[str, Any]:
    found: dict[str, Any] = {name: getattr(cell, name) for name in _CELL}
    measured = cell.measured
    if measured is None:
        return found
    found |= {name: getattr(measured, name) for name in _MEASURED}
    step = measured.step_s
    found |= {f"step_{name}_s": getattr(step, name) for name in ("median", "p10", "p90")}
    found |= {"steps": step.steps, "launches": len(step.medians)}
    found["launch_medians_s"] = " ".join(map(str, step.medians))
    found["gemm_peak_flops"] = measured.peak_flops and measured.peak_flops.measured
    for kind in ("measured", "predicted"):
        side = getattr(measured.memory, kind)
        found |= {f"{kind}_{name}": side and getattr(side, name) for name in _SIDE}
    side = measured.memory.measured
    found |= {f"peak_{k}_bytes": v for k, v in (side.peak_terms if side else {}).items()}
    found |= {f"{name.replace(' ', '_')}_s": s for name, s in (measured.parts_s or {}).items()}
    gap = group.parity(cell)
    for name in ("first_loss", "last_loss", "grad_norm"):
        found[f"{name}_to_reference"] = gap and getattr(gap, name)
    found |= {"first_loss": None, "last_loss": None}
    if measured.losses:
        found |= {"first_loss": measured.losses[0], "last_loss": measured.losses[-1]}
    theory = measured.traffic and measured.traffic.theory
    found["collective_bytes"] = measured.traffic and measured.traffic.volume_bytes
    found["paper_bytes"] = theory and theory.paper_bytes
    found["deepspeed_hash"] = (measured.config or {}).get("deepspeed_hash")
    found["limit"] = " ".join(limits.sentences(group, cell))
    return found
