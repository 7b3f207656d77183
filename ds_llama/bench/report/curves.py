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
from ds_llama.bench.report.plots import strategies, unit_of
from ds_llama.bench.report.table import Group
from ds_llama.bench.report.words import counted
from ds_llama.units import format_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, RED)
_HIGH = 3.4  # inches
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
        order = list(dict.fromkeys(kinds))
        handles: dict[str, object] = {}
        for cell, kind in zip(known, kinds, strict=True):
            found, across = speed(group.measured(cell)), held[cell.key] / size
            colour = _COLOURS[order.index(kind) % len(_COLOURS)]
            axes.plot([across] * 2, [found.low, found.high], color=colour, linewidth=1)
            marker = "*" if cell is advice.take else "o"
            (handles[kind],) = axes.plot(
                across,
                found.tokens_per_s,
                "o",
                color=colour,
                markeredgecolor=PAPER,
                markeredgewidth=0.6,
                markersize=7,
            )
            if marker == "*":
                ring = {"markerfacecolor": "none", "markeredgewidth": 1.4, "markersize": 12}
                axes.plot(across, found.tokens_per_s, "o", color=INK, **ring)
        axes.set_ylim(0, max(speed(group.measured(c)).high for c in known) * 1.12)
        axes.margins(x=0.12)
        axes.set_xlabel(f"{unit} on one device, at the peak (less is better)")
        axes.set_ylabel("tokens/s (more is better)")
        axes.yaxis.set_major_formatter(lambda value, _: format_count(value))
        named = known if len(known) <= _NAMED else list(advice.frontier)
        points = [(held[c.key] / size, group.measured(c).tokens_per_s) for c in named]
        drawing.legend(figure, list(handles.values()), list(handles), 4)
        figure.draw_without_rendering()
        _label(axes, points, [group.name(cell) for cell in named])
        alt = f"Memory against throughput of {len(known)} cells"
        note = "Ringed: what to take. Dashed: no other cell is as fast with less memory."
        return drawing.finish(figure, name, "Memory and throughput", alt, note)


def _label(axes: Axes, points: list[tuple[float, float]], names: list[str]) -> None:
    """Names beside their points, towards the middle, moved up or down until none is on another."""
    pixels = axes.transData.transform(points)
    middle = sum(axes.get_window_extent().intervalx) / 2
    scale = axes.figure.dpi / 72  # type: ignore[union-attr]
    taken: list[tuple[float, float, float]] = []
    for (across, up), point, name in sorted(
        zip(pixels.tolist(), points, names, strict=True), key=lambda each: -each[0][1]
    ):
        right = across <= middle
        wide = 5.2 * len(name) * scale
        left = across + 9 * scale if right else across - 9 * scale - wide
        down = up
        while any(a < left + wide and left < b and abs(y - down) < 10 * scale for a, b, y in taken):
            down -= scale
        taken.append((left, left + wide, down))
        axes.annotate(
            name,
            point,
            xytext=(9 if right else -9, (down - up) / scale),
            textcoords="offset points",
            ha="left" if right else "right",
            va="center",
            fontsize=8.5,
        )


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
        order = list(dict.fromkeys(kinds))
        handles: dict[str, object] = {}
        for cell, kind in zip(known, kinds, strict=True):
            values = [float("nan") if v is None else v for v in group.measured(cell).losses]
            steps = range(1, len(values) + 1)
            colour = RED if cell in wrong else _COLOURS[order.index(kind) % 5]
            width = 2.6 if cell is group.reference else 1.2
            label = group.name(cell) if cell in wrong else kind
            (handles[label],) = axes.plot(steps, values, color=colour, linewidth=width, alpha=0.85)
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        drawing.legend(figure, list(handles.values()), list(handles), 4)
        alt = f"Losses of {counted(len(known), 'cell')}, {len(wrong)} not the reference's"
        note = "The thick line is the reference. Where there is one line, all cells lie on it."
        return drawing.finish(figure, name, "Losses", alt, note)
