"""One figure as PNG and as SVG for a page: text stays text, colours become the page's variables.

matplotlib is imported when something is drawn.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito 2008: told apart with every kind of colour vision.
BLUE, ORANGE, GREEN, PINK = "#0072b2", "#e69f00", "#009e73", "#cc79a7"
SKY, RED, YELLOW, GREY = "#56b4e9", "#d55e00", "#f0e442", "#999999"
INK, PAPER, LINE, QUIET = "#1b1f24", "#fffffe", "#d8dde3", "#5b6570"
# What each colour is called in the page's style, which has other values in the dark.
VARIABLES = {
    BLUE: "blue",
    ORANGE: "orange",
    GREEN: "green",
    PINK: "pink",
    SKY: "sky",
    RED: "red",
    YELLOW: "yellow",
    GREY: "grey",
    INK: "ink",
    PAPER: "paper",
    LINE: "line",
    QUIET: "quiet",
}
WIDTH = 5.0  # inches: a phone shows it at about 1 pixel a point, so its text is legible there
ROW = 0.28
_LETTER = 5.6  # points, of small print
_LEGEND = 50  # letters that a line under the figure has room for
_W3 = "http://www.w3.org"


@dataclass(frozen=True)
class Picture:
    """`name` is the PNG's without its end; `alt` says what is seen to who cannot see it."""

    name: str
    title: str
    alt: str
    note: str
    png: bytes
    svg: str


def style(name: str) -> AbstractContextManager[None]:
    """The settings to draw under; the same rows give the same bytes."""
    from matplotlib import rc_context

    return rc_context(
        {
            "font.size": 10,
            "svg.fonttype": "none",
            "svg.hashsalt": name,
            "axes.linewidth": 0.6,
            "text.color": INK,
            "axes.labelcolor": QUIET,
            "axes.edgecolor": QUIET,
            "xtick.color": QUIET,
            "ytick.color": QUIET,
            "xtick.labelcolor": QUIET,
            "ytick.labelcolor": INK,
            "grid.color": LINE,
            "grid.linewidth": 0.6,
            "axes.axisbelow": True,
            "legend.frameon": False,
            "legend.labelcolor": INK,
        }
    )


def bars(rows: int, extra: float = 0.0) -> tuple[Figure, Axes]:
    """A figure for horizontal bars, high enough that `rows` names can be read."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 0.75 + ROW * rows + extra), layout="constrained")
    axes = figure.subplots()
    plain(axes, "x")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return figure, axes


def plain(axes: Axes, grid: str) -> None:
    """Without a frame, with a grid along one axis or "both"."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis=grid)  # type: ignore[arg-type]
    axes.tick_params(length=2)


def rows_down(axes: Axes, names: Sequence[str]) -> None:
    """Names from the top down, one a row; of long ones what leaves room for the bars."""
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)


def short(name: str, longest: int = 36) -> str:
    """A name without its middle where it is longer: cells differ at the ends of theirs."""
    if len(name) <= longest:
        return name
    head = longest // 3
    return f"{name[:head]}…{name[head + 1 - longest :]}"


def legend(figure: Figure, found: Mapping[str, Artist]) -> None:
    """Under the figure, where it covers nothing, in as many columns as there is room for."""
    labels = [short(label, _LEGEND) for label in found]
    widest = max(_LETTER * len(label) for label in labels) + 28
    figure.legend(
        found.values(),
        labels,
        loc="outside lower center",
        ncols=max(1, min(4, len(found), int(72 * WIDTH / widest))),
        handlelength=1.2,
        handleheight=0.9,
        columnspacing=1.1,
        handletextpad=0.5,
        fontsize=9.5,
    )


def finish(figure: Figure, name: str, title: str, alt: str, note: str = "") -> Picture:
    """The figure's files; called under `style(name)`."""
    png, svg = io.BytesIO(), io.StringIO()
    figure.savefig(png, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    figure.set_layout_engine("none")  # as it was laid out for the PNG
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    return Picture(name, title, alt, note, png.getvalue(), for_page(svg.getvalue(), name, alt))


def for_page(svg: str, name: str, alt: str) -> str:
    """An SVG file's text as an element of a page: no ids but its own, no style for all elements."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: _own_id(m[1], name) if m[1] in used else "", svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, variable in VARIABLES.items():
        svg = re.sub(colour, f"var(--{variable})", svg, flags=re.IGNORECASE)
    head, rest = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    spaces = f'xmlns="{_W3}/2000/svg" xmlns:xlink="{_W3}/1999/xlink"'
    label = f'role="img" aria-label="{escape(alt, quote=True)}"'
    return f"<svg {spaces} {box[0]} {label}>{rest.strip()}"


def _own_id(found: str, name: str) -> str:
    return f' id="{name}-{found}"'
