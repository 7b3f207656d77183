"""Which strategy to take of those that fit, and why, in plain words with the numbers."""

from __future__ import annotations

from collections.abc import Sequence

from ds_llama.planner.fit import Machine
from ds_llama.planner.plan import Change, Strategy
from ds_llama.units import format_bytes, format_count

# Below this the time model cannot tell two strategies apart, and the simpler one is taken.
SAME_TIME = 0.05

RULE_BY_TIME = (
    f"the fastest that fits; of those within {SAME_TIME:.0%} of it one without offload, then the "
    "one that moves the fewest bytes, then the one with the smallest peak"
)
RULE_BY_BYTES = (
    "of those that fit the one that moves the fewest bytes in a step, then without recomputation, "
    "then the one with the smallest peak"
)


def rule(rows: Sequence[Strategy], hardware: str | None) -> str:
    """The rule that `ranked` follows for these rows, and why no other."""
    if _timed(rows):
        return RULE_BY_TIME
    dtype = rows[0].candidate.resolved.dtype
    why = f"{hardware} has no figures for {dtype}, and without them" if hardware else ""
    return f"{why or 'without --hardware'} no speed is predicted: {RULE_BY_BYTES}"


def ranked(rows: Sequence[Strategy]) -> list[Strategy]:
    """The rows that fit, the best first."""
    fitting = [row for row in rows if row.fit.verdict == "fits"]
    if not _timed(rows):
        return sorted(fitting, key=_by_bytes)
    left, order = fitting, list[Strategy]()
    while left:
        fastest = max(_speed(row) for row in left)
        same = [row for row in left if _speed(row) >= fastest * (1 - SAME_TIME)]
        best = min(same, key=lambda row: (_offloads(row), *_by_bytes(row)))
        order.append(best)
        left = [row for row in left if row is not best]
    return order


def reason(order: Sequence[Strategy], machine: Machine) -> str:
    """Why the first of what `ranked` gave."""
    best, count = order[0], len(order)
    among = f"of the {count} that fit"
    fastest = max(_speed(row) for row in order)
    if count == 1:
        why = "the only one that fits"
    elif best.tokens_per_s is None:
        why = f"moves the fewest bytes in a step {among}"
    elif fastest > _speed(best):
        alike = [row for row in order if _speed(row) >= fastest * (1 - SAME_TIME)]
        least = "does not offload" if _offloads(best) < max(map(_offloads, alike)) else ""
        least = least or "moves the fewest bytes"
        why = f"within {SAME_TIME:.0%} of the fastest {among}, and {least}"
    else:
        why = f"the fastest {among}"
    return f"{best.name}: {why}; {_numbers(best, machine)}."


def runner_up(order: Sequence[Strategy], machine: Machine) -> str | None:
    """The second, and how far it is behind."""
    if len(order) < 2:
        return None
    best, second = order[:2]
    behind = ""
    if best.tokens_per_s and second.tokens_per_s:
        change = second.tokens_per_s / best.tokens_per_s - 1
        behind = f" ({change:+.0%})" if abs(change) >= 0.005 else " (as fast)"
    return f"runner-up {second.name}{behind}: {_numbers(second, machine)}."


def _numbers(row: Strategy, machine: Machine) -> str:
    """The few numbers that a choice is made by."""
    said = []
    if row.tokens_per_s_per_gpu is not None:
        mfu = "" if row.mfu is None else f" ({row.mfu:.0%} MFU)"
        said.append(f"{format_count(row.tokens_per_s_per_gpu)} tokens/s per GPU{mfu}")
    capacity = machine.gpu_bytes
    of = "" if capacity is None else f" of {format_bytes(capacity)}"
    said.append(f"{format_bytes(row.peak_bytes)}{of} at the peak")
    if row.host_bytes:
        said.append(f"{format_bytes(row.host_bytes)} of a node's host memory")
    said.append(f"{format_bytes(row.moved_bytes)} moved in a step")
    return ", ".join(said)


def nothing_fits(rows: Sequence[Strategy], changes: Sequence[Change], machine: Machine) -> str:
    """What comes nearest, what is in its way, and what would make it fit."""
    near = min(rows, key=lambda row: (row.fit.verdict == "no", _excess(row)))
    how = "fits only into what is kept free" if near.fit.verdict == "tight" else "is too large"
    said = f"nothing fits. The nearest is {near.name}, which {how}: {_why(near, machine)}."
    if not changes:
        return f"{said} No change that was tried makes it fit."
    words = [f"{change.change} ({change.strategy})" for change in changes]
    return f"{said} It would fit {', or '.join(words)}."


def _why(row: Strategy, machine: Machine) -> str:
    if row.fit.resource == "host":
        need = format_bytes(row.host_bytes)
        keep = format_bytes(row.host_reserve_bytes)
        return (
            f"{need} and {keep} of processes on a host of {format_bytes(machine.host_bytes or 0)}"
        )
    if row.fit.resource == "nvme":
        nvme = format_bytes(machine.nvme_bytes or 0)
        return f"{format_bytes(row.nvme_bytes)} on an NVMe of {nvme}"
    said = (
        f"{format_bytes(row.peak_bytes)} at its peak and {format_bytes(row.reserve_bytes)} kept "
        f"free, on a GPU of {format_bytes(machine.gpu_bytes or 0)}"
    )
    term = row.memory.device_peak.to_dict().get(row.fit.limit or "")
    return f"{said}; the most are {row.fit.limit}, {format_bytes(term)}" if term else said


def unknown(rows: Sequence[Strategy], hardware: str | None) -> str:
    """What can be said where nobody said how much memory a device has."""
    least = min(rows, key=lambda row: row.peak_bytes)
    return (
        f"give --gpu-memory{'' if hardware else ' or --hardware'} to learn what fits; the smallest "
        f"peak is that of {least.name}, {format_bytes(least.peak_bytes)}."
    )


def _excess(row: Strategy) -> float:
    machine = row.machine
    parts = [
        (row.peak_bytes + row.reserve_bytes, machine.gpu_bytes),
        (row.host_bytes, machine.host_bytes),
        (row.nvme_bytes, machine.nvme_bytes),
    ]
    return max(used / capacity for used, capacity in parts if capacity)


def _timed(rows: Sequence[Strategy]) -> bool:
    return any(row.tokens_per_s is not None for row in rows)


def _speed(row: Strategy) -> float:
    return row.tokens_per_s or 0.0


def _by_bytes(row: Strategy) -> tuple[int, bool, int]:
    return row.moved_bytes, row.candidate.recompute, row.peak_bytes


def _offloads(row: Strategy) -> bool:
    resolved = row.candidate.resolved
    return resolved.offload_optimizer is not None or resolved.offload_param is not None
