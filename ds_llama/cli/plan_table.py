"""A plan as text, for a terminal of any width; never in colour."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ds_llama.planner import fit
from ds_llama.planner.plan import Plan, Strategy
from ds_llama.planner.sizes import sizes
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
_OWN, _RECOMMENDED = "*", ">"


class Column(NamedTuple):
    """`rank` says which column goes first where not all have room: the one with the highest."""

    title: str
    rank: int
    cell: Callable[[Strategy], str]


def text(plan: Plan, width: int, *, every: bool = False) -> str:
    """The head, the table, the split by term, and the advice, each line within `width`."""
    width = max(width, 40)
    rows = shown(plan, every)
    scale, unit = _unit(rows)
    columns, dropped = _fitting(_columns(plan, rows, scale), rows, width)
    terms, gone = _fitting(_split(plan, rows, scale), rows, width)
    parts = [
        *(_wrapped(head(plan), width), _grid(columns, rows, width)),
        f"{unit} of the peak on one GPU:\n{_grid(terms, rows, width)}",
        _wrapped([*_notes(plan, rows, unit, [*dropped, *gone])], width),
        _wrapped(_advice(plan), width),
    ]
    return "\n\n".join(part for part in parts if part)


def shown(plan: Plan, every: bool) -> list[Strategy]:
    """Rows worth a line: recomputation only where a strategy does not fit without it."""
    rows = {row.name: row for row in plan.strategies}

    def worth(row: Strategy) -> bool:
        plain = rows.get(row.name.removesuffix(RECOMPUTE))
        needed = plain is None or plain is row or plain.fit.verdict != "fits"
        return every or needed or row.name in (plan.recommended, plan.runner_up)

    return [row for row in plan.strategies if worth(row)]


def head(plan: Plan) -> list[str]:
    """What is planned, and on what."""
    run, machine = plan.own.candidate.resolved, plan.machine
    what = plan.hardware or ("GPU" if machine.world_size == 1 else "GPUs")
    sizes = [
        *([f"{machine.nodes:,} nodes"] if machine.nodes > 1 else []),
        *([f"{format_bytes(machine.gpu_bytes)} each"] if machine.gpu_bytes else []),
        *([f"host {format_bytes(machine.host_bytes)} a node"] if machine.host_bytes else []),
        *([f"NVMe {format_bytes(machine.nvme_bytes)} a node"] if machine.nvme_bytes else []),
    ]
    return [
        f"{format_count(run.model.num_parameters)} parameters in {run.dtype}, sequences of "
        f"{run.run.data.sequence_length:,} tokens",
        f"batch {run.global_batch_size:,} = {run.micro_batch_size:,} micro x "
        f"{run.accumulation_steps:,} accumulation x {machine.world_size:,} ranks",
        f"{machine.world_size:,} {', '.join([what, *sizes])}",
    ]


def _columns(plan: Plan, rows: Sequence[Strategy], scale: int) -> list[Column]:
    """Those that have something to say for these rows."""

    def size(value: int) -> str:
        return _number(value / scale)

    columns = [
        Column("strategy", 0, lambda row: _label(plan, row)),
        Column("peak", 2, lambda row: size(row.peak_bytes)),
        Column("rest", 7, lambda row: size(row.memory.device_steady.total)),
    ]
    if any(row.host_bytes >= scale / 20 for row in rows):
        columns.append(Column("host", 4, lambda row: size(row.host_bytes)))
        columns.append(Column("pinned", 9, lambda row: size(row.pinned_bytes)))
    if any(row.nvme_bytes for row in rows):
        columns.append(Column("NVMe", 5, lambda row: size(row.nvme_bytes)))
    columns.append(Column("moved", 8, lambda row: size(row.moved_bytes)))
    if any(row.time for row in rows):
        columns.append(Column("tok/s", 3, lambda row: _count(row.tokens_per_s_per_gpu)))
        columns.append(Column("MFU", 6, lambda row: _share(row.mfu)))
    if any(row.cost for row in rows):
        columns += _prices(rows)
    if any(row.max_micro_batch or row.max_sequence_length for row in rows):
        columns.append(Column("max", 3, _largest))
    return [*columns, Column("fits", 1, _verdict)]


def _prices(rows: Sequence[Strategy]) -> list[Column]:
    hours = Column(
        "GPU-h",
        10,
        lambda row: _count(row.cost.gpu_hours_per_billion_tokens) if row.cost else "-",
    )
    if all(row.cost is None or row.cost.cost_per_billion_tokens is None for row in rows):
        return [hours]
    cost = Column(
        "cost", 5, lambda row: _count(row.cost.cost_per_billion_tokens) if row.cost else "-"
    )
    return [hours, cost]


def _split(plan: Plan, rows: Sequence[Strategy], scale: int) -> list[Column]:
    """The terms that any of the rows has; where there is no room the smallest goes first."""
    largest = {term: max(getattr(row.memory.device_peak, term) for row in rows) for term in _TERMS}
    order = sorted(_TERMS, key=lambda term: -largest[term])

    def column(term: str) -> Column:
        def cell(row: Strategy) -> str:
            value: int = getattr(row.memory.device_peak, term)
            return _number(value / scale)

        return Column(_TERMS[term], 1 + order.index(term), cell)

    names = Column("strategy", 0, lambda row: _label(plan, row))
    return [names, *[column(term) for term in _TERMS if largest[term] >= scale / 20]]


def _notes(plan: Plan, rows: Sequence[Strategy], unit: str, dropped: Sequence[str]) -> list[str]:
    """What the table's words mean, as far as they are in it."""
    marks = []
    if any(row.name == plan.recommended for row in rows):
        marks.append(f"{_RECOMMENDED} recommended")
    marks.append(f"{_OWN} as the run is")
    said = ["peak and rest: one GPU"]
    if any(row.host_bytes or row.nvme_bytes for row in rows):
        said.append("host, pinned, NVMe: one node")
    said.append("moved: by one rank in a step")
    if any(row.time for row in rows):
        said.append("tok/s: of one GPU")
    if any(row.cost for row in rows):
        said.append("GPU-h and cost: of a billion tokens")
    lines = [f"{', '.join(marks)}; in {unit}, {'; '.join(said)}"]
    if plan.machine.gpu_bytes is not None:
        fixed = format_bytes(fit.device_reserve(0, plan.world_size))
        lines.append(
            f"kept free: {fixed} for CUDA and NCCL, {fit.FRAGMENTATION:.0%} of the peak for "
            "fragmentation; tight: fits only without that"
        )
    hidden = len(plan.strategies) - len(rows)
    if hidden:
        lines.append(f"{hidden} strategies fit without recomputation; with it: --all")
    if dropped:
        lines.append(f"no room for {', '.join(dropped)}: a wider terminal, or --json")
    unplayed = dict.fromkeys(what for row in rows for what in row.memory.unplayed)
    if unplayed:
        lines.append(f"not in the numbers: what {' and '.join(unplayed)} needs or saves")
    refused = [each for each in plan.refused if not each.name.endswith(RECOMPUTE)]
    return [*lines, *[f"{each.name} left out: {each.reason.split(':')[0]}" for each in refused]]


def _advice(plan: Plan) -> list[str]:
    lines = [f"{_RECOMMENDED} {plan.reason}" if plan.recommended else plan.reason]
    if plan.runner_up_reason:
        lines.append(plan.runner_up_reason)
    if plan.recommended:
        lines.append(f"rule: {plan.rule}")
    return [*lines, *_sizes(plan)]


def _sizes(plan: Plan) -> list[str]:
    """Of the recommended strategy, or of the run's own where there is none."""
    row = plan.strategy(plan.recommended or "") or plan.own
    said = [
        f"{size.key} {_size(size.value)} ({size.why})" for size in sizes(row.candidate.resolved)
    ]
    return [f"sizes of {row.name}, in elements: {'; '.join(said)}"] if said else []


def _size(value: int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else format_count(value)


def _label(plan: Plan, row: Strategy) -> str:
    mark = _RECOMMENDED if row.name == plan.recommended else " "
    name = row.name
    if name.endswith(RECOMPUTE) and plan.strategy(name.removesuffix(RECOMPUTE)):
        name = f"  {RECOMPUTE}"
    return f"{mark}{_OWN if row.candidate.own else ' '}{name}"


def _verdict(row: Strategy) -> str:
    if row.fit.verdict in (None, "fits"):
        return "fits" if row.fit.verdict else "?"
    limit = row.fit.limit or ""
    return f"{row.fit.verdict}: {_TERMS.get(limit, limit)}"


def _largest(row: Strategy) -> str:
    found = row.max_micro_batch or row.max_sequence_length
    return "-" if found is None else f"{found:,}"


def _unit(rows: Sequence[Strategy]) -> tuple[int, str]:
    """GiB, or MiB for a model that is small."""
    largest = max(row.peak_bytes for row in rows)
    return (2**30, "GiB") if largest >= 2**30 else (2**20, "MiB")


def _number(value: float) -> str:
    if value < 0.05:
        return "-"
    return f"{value:,.1f}" if value < 99.95 else f"{value:,.0f}"


def _count(value: float | None) -> str:
    return "-" if value is None else format_count(value)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _fitting(
    columns: Sequence[Column], rows: Sequence[Strategy], width: int
) -> tuple[list[Column], list[str]]:
    """The columns that there is room for, and the titles of the others."""
    kept, dropped = list(columns), list[str]()
    while len(kept) > 1 and sum(_widths(kept, rows)) + len(kept) - 1 > width:
        last = max(kept, key=lambda column: column.rank)
        kept.remove(last)
        dropped.append(last.title)
    return kept, dropped[::-1]


def _widths(columns: Sequence[Column], rows: Sequence[Strategy]) -> list[int]:
    return [max(len(column.title), *(len(column.cell(row)) for row in rows)) for column in columns]


def _grid(columns: Sequence[Column], rows: Sequence[Strategy], width: int) -> str:
    """Names and verdicts to the left, numbers to the right; two spaces apart if there is room."""
    widths = _widths(columns, rows)
    gap = "  " if sum(widths) + 2 * (len(widths) - 1) <= width else " "
    lines = [[column.title for column in columns]]
    lines[0][0] = f"  {lines[0][0]}"
    lines += [[column.cell(row) for column in columns] for row in rows]
    left = [column.title in ("strategy", "fits") for column in columns]
    return "\n".join(
        gap.join(
            cell.ljust(size) if to_left else cell.rjust(size)
            for cell, size, to_left in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in lines
    )


def _wrapped(lines: Sequence[str], width: int) -> str:
    return "\n".join(
        textwrap.fill(line, width, subsequent_indent="  ", break_on_hyphens=False) for line in lines
    )
