"""The plots of a group of cells: one function each, all of them in the order of the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ds_llama.bench.report import drawing
from ds_llama.bench.report.advise import Advice, speed
from ds_llama.bench.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PAPER,
    PINK,
    QUIET,
    RED,
    SKY,
    YELLOW,
    Picture,
)
from ds_llama.bench.report.groups import Group
from ds_llama.bench.report.row import Cell, Side
from ds_llama.bench.report.words import counted
from ds_llama.units import format_count

if TYPE_CHECKING:
    from matplotlib.artist import Artist

_TERMS = {
    "parameters": BLUE,
    "gradients": SKY,
    "master": GREEN,
    "optimizer": YELLOW,
    "buckets": RED,
    "activations": ORANGE,
    "logits": PINK,
    "other": GREY,
}
_PARTS = {
    "data": PINK,
    "forward": SKY,
    "backward": BLUE,
    "reduce": ORANGE,
    "gather": YELLOW,
    "optimizer": GREEN,
    "host link": RED,
    "nvme": INK,
    "other": GREY,
}
_PLANNED = {"peak": ("o", BLUE), "at rest": ("s", ORANGE), "host peak": ("^", GREEN)}
_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def pictures(group: Group, advice: Advice, suffix: str = "") -> list[Picture]:
    """What can be drawn of a group; what was not measured is not drawn."""
    from ds_llama.bench.report.curves import frontier, losses

    drawn = (memory, predicted, throughput, frontier, phases, losses)
    found = [draw(group, advice, f"{draw.__name__}{suffix}") for draw in drawn]
    return [picture for picture in found if picture is not None]


def memory(group: Group, advice: Advice, name: str) -> Picture | None:
    """The peak of a step on one device, by what it is for; the plan's word as a mark."""
    known = [(cell, side) for cell, side in _sides(group) if side.peak_terms]
    if not known:
        return None
    from matplotlib.patches import Patch

    terms = dict.fromkeys(term for _, side in known for term in side.peak_terms)
    largest = max(side.device_peak_bytes for _, side in known)
    most = max([largest, *(side.host_peak_bytes for _, side in known)])
    unit, size = unit_of(most)
    hosts = any(_has_host(side) for _, side in known)
    with drawing.style(name):
        figure, axes = drawing.bars(len(known), 0.45)
        height = 0.42 if hosts else 0.62
        for row, (cell, side) in enumerate(known):
            place = row - (0.14 if hosts else 0)
            left = 0.0
            for term in terms:
                width = side.peak_terms.get(term, 0) / size
                colour = _TERMS.get(term, GREY)
                axes.barh(place, width, height, left, color=colour, edgecolor=PAPER, linewidth=0.5)
                left += width
            planned = group.measured(cell).planned_peak_bytes
            if planned is not None:
                ends = [place - 0.34, place + 0.34]
                axes.plot([planned / size] * 2, ends, color=INK, linewidth=1.6)
            if side.device_peak_bytes / size > left * 1.005:
                axes.plot(side.device_peak_bytes / size, place, "D", color=INK, markersize=3)
            if hosts:
                axes.barh(row + 0.26, side.host_peak_bytes / size, 0.2, color=QUIET)
        drawing.rows_down(axes, [group.name(cell) for cell, _ in known])
        axes.set_xlim(0, most / size * 1.04)
        axes.set_xlabel(f"{unit} on one device")
        held = [term for term in terms if any(side.peak_terms.get(term) for _, side in known)]
        marks: dict[str, Artist] = {t: Patch(color=_TERMS.get(t, GREY)) for t in held}
        if hosts:
            marks["host (below)"] = Patch(color=QUIET)
        if any(group.measured(cell).planned_peak_bytes for cell, _ in known):
            marks["by plan"] = _mark("|", 9)
        if any(side.device_peak_bytes > 1.005 * sum(side.peak_terms.values()) for _, side in known):
            marks["peak of the start"] = _mark("D", 3)
        drawing.legend(figure, marks)
        most_held = f"at most {largest / size:.3g} {unit}"
        alt = f"Memory of {counted(len(known), 'cell')}, stacked by category, {most_held}"
        return drawing.finish(figure, name, "Memory by stage", alt, "At the peak of a step.")


def predicted(group: Group, advice: Advice, name: str) -> Picture | None:
    """How far the plan is from what was counted; 0 is exact."""
    found: dict[str, list[tuple[float, int]]] = {}
    known = [(cell, side) for cell, side in _sides(group) if _plans(cell, side)]
    for row, (cell, side) in enumerate(known):
        for kind, gap in _plans(cell, side).items():
            found.setdefault(kind, []).append((100 * gap, row))
    if not found:
        return None
    with drawing.style(name):
        figure, axes = drawing.bars(len(known), 0.25)
        axes.axvline(0, color=QUIET, linewidth=1)
        marks: dict[str, Artist] = {}
        for kind, points in found.items():
            marker, colour = _PLANNED[kind]
            across, down = zip(*points, strict=True)
            (line,) = axes.plot(across, down, marker, color=colour, mec=PAPER, mew=0.6, ms=6.5)
            marks[kind] = line
        drawing.rows_down(axes, [group.name(cell) for cell, _ in known])
        worst = max(abs(gap) for points in found.values() for gap, _ in points)
        axes.set_xlim(-1.15 * max(worst, 1), 1.15 * max(worst, 1))
        axes.set_xlabel("predicted to measured, %")
        drawing.legend(figure, marks)
        alt = f"Predicted against measured memory: at most {worst:.2g}% apart"
        return drawing.finish(figure, name, "Predicted against measured", alt)


def _plans(cell: Cell, side: Side) -> dict[str, float]:
    """How far the plan is beyond what was counted, by kind; 0.01 is 1%."""
    measured = cell.measured
    assert measured is not None
    both = {
        "peak": (measured.planned_peak_bytes, side.device_peak_bytes),
        "at rest": (measured.planned_steady_bytes, side.device_steady_bytes),
    }
    plan = measured.memory.predicted
    if plan is not None and _has_host(side):
        both["host peak"] = plan.host_peak_bytes, side.host_peak_bytes
    return {k: said / counted - 1 for k, (said, counted) in both.items() if said and counted}


def _has_host(side: Side) -> bool:
    """Whether the host holds more than a few batches."""
    return side.host_peak_bytes > 0.05 * side.device_peak_bytes


def throughput(group: Group, advice: Advice, name: str) -> Picture | None:
    """Tokens a second of all devices, each launch a dot."""
    if not group.cells:
        return None
    with drawing.style(name):
        figure, axes = drawing.bars(len(group.cells))
        most = max(speed(group.measured(cell)).high for cell in group.cells)
        for row, cell in enumerate(group.cells):
            measured = group.measured(cell)
            found = speed(measured)
            colour = BLUE if cell is advice.take else SKY
            axes.barh(row, found.tokens_per_s, 0.62, color=colour)
            axes.plot([found.low, found.high], [row, row], color=INK, linewidth=1)
            each = [measured.tokens_per_step / median for median in measured.step_s.medians]
            axes.plot(each, [row] * len(each), ".", color=INK, markersize=4)
            end = max(found.high, found.tokens_per_s) + 0.015 * most
            axes.text(end, row, format_count(found.tokens_per_s), va="center", fontsize=9.5)
        drawing.rows_down(axes, [group.name(cell) for cell in group.cells])
        axes.set_xlim(0, most * 1.14)
        axes.set_xlabel("tokens/s of all ranks")
        axes.xaxis.set_major_formatter(lambda value, _: format_count(value))
        alt = f"Throughput of {counted(len(group.cells), 'cell')}"
        note = "Darker: what to take. A dot is a launch; of a single one the line is its steps."
        return drawing.finish(figure, name, "Throughput by stage", alt, note)


def phases(group: Group, advice: Advice, name: str) -> Picture | None:
    """A step taken apart, in milliseconds; the mark is a step as it runs."""
    known = [cell for cell in group.cells if group.measured(cell).parts_s]
    if not known:
        return None
    from matplotlib.patches import Patch

    split = {cell.key: group.measured(cell).parts_s or {} for cell in known}
    there = list(dict.fromkeys(part for parts in split.values() for part in parts))
    parts = [part for part in _PARTS if part in there]
    parts += [part for part in there if part not in _PARTS]
    with drawing.style(name):
        figure, axes = drawing.bars(len(known), 0.45)
        for row, cell in enumerate(known):
            left = 0.0
            for part in parts:
                width = 1e3 * split[cell.key].get(part, 0.0)
                colour = _PARTS.get(part, GREY)
                axes.barh(row, width, 0.62, left, color=colour, edgecolor=PAPER, linewidth=0.5)
                left += width
            real = 1e3 * group.measured(cell).step_s.median
            axes.plot([real] * 2, [row - 0.4, row + 0.4], color=INK, linewidth=1.6)
        drawing.rows_down(axes, [group.name(cell) for cell in known])
        axes.set_xlim(left=0)
        axes.set_xlabel("ms, each part alone")
        marks: dict[str, Artist] = {p: Patch(color=_PARTS.get(p, GREY)) for p in parts}
        drawing.legend(figure, marks | {"a step as it runs": _mark("|", 9)})
        alt = f"The parts of a step of {counted(len(known), 'cell')}"
        note = "In a step as it runs parts overlap, and no time is spent on watching."
        return drawing.finish(figure, name, "Step phases", alt, note)


def _mark(shape: str, size: float) -> Artist:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=INK, marker=shape, linestyle="", markersize=size)


def unit_of(largest: float) -> tuple[str, int]:
    """The unit in which `largest` bytes have a digit before the point."""
    return next(((unit, size) for unit, size in _UNITS if largest >= size), _UNITS[-1])


def _sides(group: Group) -> Iterator[tuple[Cell, Side]]:
    for cell in group.cells:
        side = group.measured(cell).memory.measured
        if side is not None:
            yield cell, side


def strategies(cells: Sequence[Cell]) -> list[str]:
    """Stages, or programs where those differ: what colours tell apart."""
    programs = list(dict.fromkeys(cell.program_name for cell in cells))
    if len(programs) > 1:
        return [cell.program_name for cell in cells]
    return [f"stage {cell.stage}" for cell in cells]
