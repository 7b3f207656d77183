"""A picture: memory over the phases of a step, stacked by what it is for, runs side by side.

Device above host, on one scale each; time is counted in changes of memory, and every phase has the
same width. matplotlib is imported when a picture is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ds_llama.errors import CallError
from ds_llama.measure.film import Film, Moment
from ds_llama.measure.phases import CATEGORIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PHASES = ("construct", "initialise", "forward", "backward", "step")
FORMATS = (".png", ".svg", ".pdf")
# Okabe and Ito 2008: told apart with every kind of colour vision; neighbours differ in lightness.
_COLOURS = {
    "parameters": "#0072B2",
    "gradients": "#56B4E9",
    "master": "#009E73",
    "optimizer": "#F0E442",
    "buckets": "#D55E00",
    "activations": "#E69F00",
    "logits": "#CC79A7",
    "other": "#999999",
}
_MOMENTS = 48  # a phase
_UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}
_LEAST_HOST = 0.05  # of the device peak: less are batches, tables, blocks of initial values


def check(path: Path) -> None:
    """Raise CallError where `draw` could not write such a file."""
    if path.suffix.lower() not in FORMATS:
        raise CallError(
            f"no picture can be written as {path.name!r}",
            where="--picture",
            remedy=f"end the name in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}",
        )


def draw(
    films: Mapping[str, Film], path: Path, *, title: str = "", gpu_memory_bytes: int | None = None
) -> None:
    """Write the picture of films by label. Their last steps are shown; a GPU's memory is a line."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    check(path)
    runs = {label: _moments(film) for label, film in films.items()}
    places = [place for place in ("device", "host") if _worth_showing(place, runs)]
    style = {"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "0", "axes.linewidth": 0.6}
    with rc_context(style):
        figure = Figure(figsize=(1.4 + 2.15 * max(len(runs), 2), 1.0 + 2.4 * len(places)))
        axes = figure.subplots(len(places), len(runs), sharex=True, sharey="row", squeeze=False)
        for row, place in zip(axes, places, strict=True):
            line = gpu_memory_bytes if place == "device" else None
            highest = max([_bytes(place, moments) for moments in runs.values()] + [line or 0])
            unit = next((name for name, size in _UNITS.items() if highest >= size), "KiB")
            for number, (axis, moments) in enumerate(zip(row, runs.values(), strict=True)):
                _panel(axis, [moment[place] for moment in moments], unit, line, named=number == 0)
            row[0].set_ylabel(f"{place}, {unit}")
            row[0].set_ylim(0, max(highest, 1) / _UNITS[unit] * 1.12)
        for axis, label in zip(axes[0], runs, strict=True):
            axis.set_title(label, fontsize=10)
        _finish(figure, axes, title)
        # Without a date two pictures of one run are the same file.
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=110, metadata=metadata)


def _moments(film: Film) -> list[Moment]:
    """The moments of all phases, one after another; of a phase that never was, nothing changes."""
    found: list[Moment] = []
    for name in PHASES:
        step = 0 if name in PHASES[:2] else film.last_step
        found += film.cut(film.span(name, step), _MOMENTS)
    return found


def _bytes(place: str, moments: Sequence[Moment]) -> int:
    return max(sum(moment[place].values()) for moment in moments)


def _worth_showing(place: str, runs: Mapping[str, Sequence[Moment]]) -> bool:
    least = {label: _LEAST_HOST * _bytes("device", moments) for label, moments in runs.items()}
    return place == "device" or any(_bytes(place, runs[label]) > least[label] for label in runs)


def _panel(
    axis: Axes, splits: Sequence[Any], unit: str, line_bytes: int | None, *, named: bool
) -> None:
    size = _UNITS[unit]
    axis.stackplot(
        range(len(splits)),
        [[split[category] / size for split in splits] for category in CATEGORIES],
        colors=[_COLOURS[category] for category in CATEGORIES],
        labels=CATEGORIES,
        linewidth=0,
    )
    totals = [sum(split.values()) / size for split in splits]
    top = max(totals)
    axis.annotate(
        f"{top:.3g}" if top < 100 else f"{top:.0f}",
        (totals.index(top), top),
        xytext=(0, 2),
        textcoords="offset points",
        ha="center",
        fontsize=8,
        fontweight="bold",
        bbox={"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "none"},
    )
    for edge in range(1, len(PHASES)):
        axis.axvline(edge * _MOMENTS, color="black", linewidth=0.4, alpha=0.35)
    if line_bytes is not None:
        axis.axhline(line_bytes / size, color="black", linewidth=1, linestyle="--")
        if named:
            axis.annotate(
                f"{line_bytes / _UNITS['GiB']:g} GiB GPU",
                (2, line_bytes / size),
                xytext=(0, 2),
                textcoords="offset points",
                fontsize=8,
            )
    axis.set_xlim(0, len(splits) - 1)
    axis.set_xticks([(number + 0.5) * _MOMENTS for number in range(len(PHASES))], PHASES)
    axis.tick_params(axis="x", length=0, labelrotation=35, pad=1)
    axis.tick_params(axis="y", length=2)
    axis.spines[["top", "right"]].set_visible(False)
    for label in axis.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")


def _finish(figure: Any, axes: Any, title: str) -> None:
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="lower center",
        ncols=len(CATEGORIES) if len(axes[0]) > 2 else len(CATEGORIES) // 2,
        frameon=False,
        handlelength=1,
        handleheight=1,
        columnspacing=1.2,
    )
    if title:
        figure.suptitle(title, fontsize=11)
    figure.tight_layout(rect=(0, 0.05 if len(axes[0]) > 2 else 0.12, 1, 1), w_pad=0.6, h_pad=0.8)
