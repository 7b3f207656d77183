"""Plots with two free axes: the frontier of memory and throughput, and the losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ds_llama.bench.report import drawing
from ds_llama.bench.report.advise import Advice, speed
from ds_llama.bench.report.drawing import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PAPER,
    PINK,
    QUIET,
    RED,
    SKY,
    Picture,
)
from ds_llama.bench.report.groups import Group
from ds_llama.bench.report.plots import strategies, unit_of
from ds_llama.bench.report.words import counted
from ds_llama.units import format_count

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

Points = list[tuple[float, float]]
_COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, RED)
_HIGH = 3.4  # inches
_LETTER = 5.6  # points
_NAMED = 10  # points: with more only those of the frontier have a name


def frontier(group: Group, advice: Advice, name: str) -> Picture | None:
    """Memory against throughput; the line joins those that no other beats in both."""
    known = [cell for cell in group.cells if group.measured(cell).memory_bytes is not None]
    if len(known) < 2:
        return None
    from matplotlib.figure import Figure

    held = {cell.key: group.measured(cell).memory_bytes or 0 for cell in known}
    unit, size = unit_of(max(held.values()))
    with drawing.style(name):
        figure = Figure(figsize=(drawing.WIDTH, _HIGH), layout="constrained")
        axes = figure.subplots()
        drawing.plain(axes, "both")
        front = [(held[c.key] / size, group.measured(c).tokens_per_s) for c in advice.frontier]
        if front:
            axes.plot(*zip(*front, strict=True), color=QUIET, linewidth=1, linestyle="--", zorder=1)
        kinds = strategies(known)
        order = sorted(set(kinds))
        handles: dict[str, Artist] = {}
        for cell, kind in zip(known, kinds, strict=True):
            found, across = speed(group.measured(cell)), held[cell.key] / size
            colour = _COLOURS[order.index(kind) % len(_COLOURS)]
            axes.plot([across] * 2, [found.low, found.high], color=colour, linewidth=1)
            (handles[kind],) = axes.plot(
                across,
                found.tokens_per_s,
                "o",
                color=colour,
                markeredgecolor=PAPER,
                markeredgewidth=0.6,
                markersize=7,
            )
            if cell is advice.take:
                axes.plot(across, found.tokens_per_s, "o", color=INK, mfc="none", mew=1.4, ms=12)
        axes.set_ylim(0, max(speed(group.measured(c)).high for c in known) * 1.12)
        axes.margins(x=0.12)
        axes.set_xlabel(f"{unit} on one device, at the peak (less is better)")
        axes.set_ylabel("tokens/s (more is better)")
        axes.yaxis.set_major_formatter(lambda value, _: format_count(value))
        named = known if len(known) <= _NAMED else list(advice.frontier)
        points, every = (
            [(held[c.key] / size, group.measured(c).tokens_per_s) for c in each]
            for each in (named, known)
        )
        drawing.legend(figure, dict(sorted(handles.items())))
        figure.draw_without_rendering()
        _label(axes, points, [drawing.short(group.name(cell)) for cell in named], every)
        alt = f"Memory against throughput of {len(known)} cells"
        note = "Ringed: what to take. Dashed: no other cell is as fast with less memory."
        return drawing.finish(figure, name, "Memory and throughput", alt, note)


def _label(axes: Axes, points: Points, names: list[str], every: Points) -> None:
    """Names beside their points, where they cover no name and no point, and are in the axes."""
    scale = axes.figure.dpi / 72
    box = axes.get_window_extent()
    (x0, x1), (y0, y1) = (
        (low / scale, high / scale) for low, high in (box.intervalx, box.intervaly)
    )
    spots = axes.transData.transform(every) / scale
    taken = [(x - 4, x + 4, y) for x, y in spots.tolist()]
    pixels = axes.transData.transform(points) / scale
    ways = [(step * sign, side) for step in range(0, 90, 2) for sign in (1, -1) for side in (1, -1)]
    each = zip(pixels.tolist(), points, names, strict=True)
    for (across, up), point, name in sorted(each, key=lambda one: -one[0][1]):
        wide = _LETTER * len(name)
        spans = {1: (across + 9, across + 9 + wide), -1: (across - 9 - wide, across - 9)}
        found = ((shift, side) for shift, side in ways if y0 + 6 < up + shift < y1 - 6)
        found = (way for way in found if spans[way[1]][0] > x0 and spans[way[1]][1] < x1 + 4)
        free = (way for way in found if _free(taken, *spans[way[1]], up + way[0]))
        shift, side = next(free, (0, 1))
        taken.append((*spans[side], up + shift))
        line = {"arrowstyle": "-", "lw": 0.5, "color": QUIET, "shrinkA": 0, "shrinkB": 4}
        axes.annotate(
            name,
            point,
            xytext=(9 * side, shift),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            fontsize=9.5,
            bbox={"boxstyle": "square,pad=0.05", "fc": drawing.PAPER, "ec": "none", "alpha": 0.7},
            arrowprops=line if abs(shift) > 8 else None,
        )


def _free(taken: list[tuple[float, float, float]], left: float, right: float, up: float) -> bool:
    return not any(a < right and left < b and abs(y - up) < 10 for a, b, y in taken)


def losses(group: Group, advice: Advice, name: str) -> Picture | None:
    """The loss of every step, of all cells over each other; red where it is not the reference's."""
    known = [cell for cell in group.cells if len(group.measured(cell).losses) > 1]
    if not known:
        return None
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    wrong = [c for c in known if (gap := group.parity(c)) is not None and gap.beyond]
    with drawing.style(name):
        figure = Figure(figsize=(drawing.WIDTH, _HIGH - 0.6), layout="constrained")
        axes = figure.subplots()
        drawing.plain(axes, "both")
        kinds = strategies(known)
        order = sorted(set(kinds))
        handles: dict[str, Artist] = {}
        for cell, kind in zip(known, kinds, strict=True):
            values = [float("nan") if v is None else v for v in group.measured(cell).losses]
            steps = range(1, len(values) + 1)
            colour = RED if cell in wrong else _COLOURS[order.index(kind) % 5]
            width = 2.6 if cell is group.reference else 1.2
            label = kind
            if cell in wrong:
                label = group.name(cell) if len(wrong) < 4 else "not the reference's"
            (handles[label],) = axes.plot(steps, values, color=colour, linewidth=width, alpha=0.85)
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        drawing.legend(figure, dict(sorted(handles.items())))
        alt = f"Losses of {counted(len(known), 'cell')}, {len(wrong)} not the reference's"
        note = "The thick line is the reference. Where there is one line, all cells lie on it."
        return drawing.finish(figure, name, "Losses", alt, note)
