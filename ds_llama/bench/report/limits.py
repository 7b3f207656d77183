"""What limits a cell, in a sentence or two made of its own numbers.

Shares are of a step taken apart: every collective and copy waited for at once, so that nothing
overlaps. A real step may be shorter than the sum of its parts.
"""

from __future__ import annotations

from collections.abc import Iterator

from ds_llama.bench.report.advise import speed
from ds_llama.bench.report.groups import Group
from ds_llama.bench.report.row import Cell, Measured
from ds_llama.bench.report.words import percent
from ds_llama.units import format_bytes

COMPUTE = "forward and backward"
_PHRASES = {
    "reduce": "reducing gradients",
    "gather": "gathering weights",
    "optimizer": "the optimizer's step",
    "host link": "copies over the host link",
    "nvme": "NVMe",
    "data": "waiting for data",
    "other": "what is in no part",
}
_MOST_OF_THE_PEAK = 0.6
_WORTH_SAYING, _WAITING, _UNSTEADY, _NEAR = 0.1, 0.01, 0.1, 0.01
_PHASES = {
    "construct": "construction",
    "initialise": "initialisation",
    "first": "the first update",
    "step": "the update",
}
_CATEGORIES = {
    "parameters": "weights",
    "master": "fp32 master weights",
    "optimizer": "optimizer state",
    "logits": "logits",
    "other": "what has no category",
}


def sentences(group: Group, cell: Cell) -> list[str]:
    """What limits a measured cell: time, the step from the next simpler cell, memory."""
    measured = group.measured(cell)
    return [*_time(measured), *_against(group, cell), *_memory(measured), *_doubts(measured)]


def shares(measured: Measured) -> dict[str, float]:
    """Each part's share of a step taken apart, forward and backward as one; the largest first."""
    parts = {name: value for name, value in (measured.parts_s or {}).items() if value > 0}
    total = sum(parts.values())
    if not total:
        return {}
    compute = parts.pop("forward", 0.0) + parts.pop("backward", 0.0)
    found = {COMPUTE: compute, **{_PHRASES.get(name, name): s for name, s in parts.items()}}
    return {name: s / total for name, s in sorted(found.items(), key=lambda item: -item[1])}


def efficiency(measured: Measured) -> float | None:
    """FLOP/s of forward and backward alone, as a share of the product of matrices' own rate."""
    parts = measured.parts_s or {}
    compute_s = parts.get("forward", 0.0) + parts.get("backward", 0.0)
    if measured.flops is None or measured.peak_flops is None or not compute_s:
        return None
    return measured.flops.hardware / compute_s / measured.peak_flops.measured


def _time(measured: Measured) -> Iterator[str]:
    found = shares(measured)
    if not found:
        yield "What limits its time was not measured."
        return
    first, rest = next(iter(found)), dict(list(found.items())[1:])
    peak = efficiency(measured)
    at = "" if peak is None else f", at {percent(peak)} of the GEMM peak"
    if first == COMPUTE:
        kind = "matrix products" if peak and peak >= _MOST_OF_THE_PEAK else COMPUTE
        words = f"Limited by {kind}: {percent(found[first])} of a step taken apart"
        words = words.replace(":", f": {COMPUTE} take", 1) if kind != COMPUTE else words
        yield f"{words}{at}{_then(rest)}."
    else:
        yield f"Limited by {first}: {percent(found[first])} of a step taken apart{_then(rest)}."
    again = measured.flops
    if again is not None and again.recomputed / again.hardware >= _WORTH_SAYING:
        yield f"{again.recomputed / again.hardware:.0%} of its FLOPs are recomputation."


def _then(rest: dict[str, float]) -> str:
    said = [f"{name} {percent(s)}" for name, s in rest.items() if s >= _WORTH_SAYING]
    return f"; {', '.join(said)}" if said else ""


def _against(group: Group, cell: Cell) -> Iterator[str]:
    """The cell that differs in one thing only, which it does not do; what that thing costs here."""
    other = simpler(group, cell)
    if other is None:
        return
    mine, theirs = speed(group.measured(cell)), speed(group.measured(other))
    if mine.ties(theirs):
        pace = "as fast within the spread"
    else:
        change = mine.tokens_per_s / theirs.tokens_per_s - 1
        pace = f"{abs(change):.0%} {'faster' if change > 0 else 'slower'}"
    held, there = group.measured(cell).memory_bytes, group.measured(other).memory_bytes
    memory = ""
    if held is not None and there:
        change = held / there - 1
        kind = "more" if change > 0 else "less"
        memory = ", as much memory"
        if abs(change) >= 0.005:
            memory = f", {abs(change):.0%} {kind} memory"
    yield f"Against {group.name(other)}: {pace}{memory}."


def simpler(group: Group, cell: Cell) -> Cell | None:
    """The measured cell without this one's recomputation, else its offload, else a stage lower."""
    ways: list[dict[str, object]] = []
    if cell.recompute:
        ways = [{"recompute": False}]
    elif cell.offload != "none":
        ways = [{"offload": "none"}]
    else:
        ways = [{"stage": stage} for stage in range(cell.stage - 1, -1, -1)]
    axes = ["program", "stage", "offload", "precision", "recompute", "compile"]
    axes += ["micro_batch_size", "accumulation", "world_size"]
    for change in ways:
        strategy = {axis: getattr(cell, axis) for axis in axes} | change
        for other in group.cells:
            if all(getattr(other, axis) == value for axis, value in strategy.items()):
                return other
    return None


def _memory(measured: Measured) -> Iterator[str]:
    side = measured.memory.measured
    if side is None:
        yield "Its memory was not measured."
        return
    phase = _PHASES.get(side.peak_phase, side.peak_phase)
    words = f"Memory peaks in {phase}: {format_bytes(side.device_peak_bytes)}"
    total = sum(side.peak_terms.values())
    # The split may be of another moment than the peak.
    if not total or abs(total / side.device_peak_bytes - 1) > _NEAR:
        yield f"{words}."
        return
    name = max(side.peak_terms, key=lambda term: side.peak_terms[term])
    largest = _CATEGORIES.get(name, name)
    yield f"{words}, {side.peak_terms[name] / total:.0%} of it {largest}."


def _doubts(measured: Measured) -> Iterator[str]:
    waited = measured.data_wait_share
    if waited is not None and waited >= _WAITING:
        yield f"{percent(waited)} of its time it waits for data."
    medians = measured.step_s.medians
    apart = (max(medians) - min(medians)) / measured.step_s.median
    if apart >= _UNSTEADY:
        yield f"Its launches are {apart:.0%} apart: read its speed with care."
