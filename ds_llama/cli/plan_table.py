"""A plan as text, for a terminal of any width; never in colour."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

from ds_llama.planner.plan import Plan, Strategy
from ds_llama.planner.strategies import RECOMPUTE
from ds_llama.units import format_bytes, format_count

_TERMS = {
    "parameters": "param",
    "gradients": "grad",
    "master": "master",
    "optimizer": "optim",
    "buckets": "bucket",
    "activations": "activ",
    "logits": "logits",
    "other": "other",
}
_NARROW, _WIDE = 76, 100


def text(plan: Plan, width: int, *, every: bool = False) -> str:
    """The head, the table, the split by term, and the advice, each line within `width`."""
    width = max(width, 40)
    rows = shown(plan, every)
    parts = ["\n".join(_wrapped(line, width) for line in head(plan)), table(plan, rows, width)]
    if width >= _NARROW:
        parts.append(split(plan, rows))
    parts.append("\n".join(_wrapped(line, width) for line in advice(plan, rows)))
    return "\n\n".join(parts)


def shown(plan: Plan, every: bool) -> list[Strategy]:
    """Rows worth a line: recomputation only where a strategy does not fit without it."""
    rows = {row.name: row for row in plan.strategies}

    def worth(row: Strategy) -> bool:
        plain = rows.get(row.name.removesuffix(RECOMPUTE))
        needed = plain is None or plain is row or plain.fit.verdict != "fits"
        return every or needed or row.candidate.own or row.name == plan.recommended

    return [row for row in plan.strategies if worth(row)]


def head(plan: Plan) -> list[str]:
    run, machine = plan.own.candidate.resolved, plan.machine
    nodes = f" in {machine.nodes:,} nodes" if machine.nodes > 1 else ""
    device = f" {plan.hardware}" if plan.hardware else " GPUs"
    gpu = f", {format_bytes(machine.gpu_bytes)} each" if machine.gpu_bytes else ""
    host = f", host {format_bytes(machine.host_bytes)} a node" if machine.host_bytes else ""
    nvme = f", NVMe {format_bytes(machine.nvme_bytes)} a node" if machine.nvme_bytes else ""
    return [
        f"{format_count(run.model.num_parameters)} parameters, {run.dtype}, sequences of "
        f"{run.run.data.sequence_length:,} tokens; batch {run.global_batch_size:,} = "
        f"{run.micro_batch_size:,} micro x {run.accumulation_steps:,} accumulation x "
        f"{machine.world_size:,} ranks",
        f"{machine.world_size:,}{device}{nodes}{gpu}{host}{nvme}",
    ]


def table(plan: Plan, rows: Sequence[Strategy], width: int) -> str:
    columns: list[tuple[str, Callable[[Strategy], str]]] = [
        ("strategy", lambda row: _label(plan, row)),
        ("peak", lambda row: format_bytes(row.peak_bytes)),
        ("at rest", lambda row: format_bytes(row.memory.device_steady.total)),
        ("host", lambda row: format_bytes(row.host_bytes) if row.host_bytes else "-"),
    ]
    return _grid(columns, rows)


def split(plan: Plan, rows: Sequence[Strategy]) -> str:
    return ""


def advice(plan: Plan, rows: Sequence[Strategy]) -> list[str]:
    return [plan.reason]


def _label(plan: Plan, row: Strategy) -> str:
    return row.name


def _grid(
    columns: Sequence[tuple[str, Callable[[Strategy], str]]], rows: Sequence[Strategy]
) -> str:
    cells = [[title for title, _ in columns], *[[cell(row) for _, cell in columns] for row in rows]]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.ljust(size) if index in (0, len(columns) - 1) else cell.rjust(size)
            for index, (cell, size) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def _wrapped(line: str, width: int) -> str:
    return textwrap.fill(line, width, subsequent_indent="  ", break_on_hyphens=False)
