"""The table of `ds-llama bench comm`: times, bandwidths, and what they mean for each stage."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ds_llama.bench.comm_words import gigabytes, lines
from ds_llama.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_LOG = 100  # columns of a log, which is no terminal of 80
_WIDE, _MIDDLE = 80, 56


def show(found: dict[str, Any]) -> None:
    """Print the table, the link, and a sentence a stage."""
    from rich.console import Console

    columns = None if sys.stdout.isatty() else _LOG
    draw(found, Console(width=columns, highlight=False, soft_wrap=False))


def draw(found: dict[str, Any], console: Console) -> None:
    """The same onto a console of any width."""
    ranks, backend = found["world_size"], found["backend"]
    console.print(f"{ranks} ranks on {found['device']}, {backend}", markup=False)
    console.print(table(found, console.width))
    for line in lines(found):
        console.print(line, markup=False)


def table(found: dict[str, Any], width: int) -> Table:
    """A row a collective, dtype and size."""
    from rich.table import Table

    drawn = Table(box=None, pad_edge=False)
    drawn.add_column("collective", overflow="fold")
    for title in _titles(width):
        drawn.add_column(title, justify="right", overflow="fold")
    before = None
    for row in found["rows"]:
        name = f"{row['collective']} {row['dtype']}"
        drawn.add_row("" if name == before else name, *_cells(row, found["link"], width))
        before = name
    return drawn


def _titles(width: int) -> list[str]:
    if width >= _WIDE:
        return ["size", "time", "p10 - p90", "alg GB/s", "bus GB/s", "of link"]
    if width >= _MIDDLE:
        return ["size", "time", "bus GB/s", "of link"]
    return ["size", "bus GB/s"]


def _cells(row: dict[str, Any], link: dict[str, Any] | None, width: int) -> list[str]:
    from ds_llama.bench.comm_stages import format_seconds

    seconds, bus = row["seconds"], row["bus_bytes_per_s"]
    spread = f"{format_seconds(seconds['p10'])} - {format_seconds(seconds['p90'])}"
    cells = {
        "size": format_bytes(row["bytes"]),
        "time": format_seconds(seconds["median"]),
        "p10 - p90": spread,
        "alg GB/s": gigabytes(row["algorithm_bytes_per_s"]),
        "bus GB/s": gigabytes(bus),
        "of link": f"{bus / link['bytes_per_s']:.0%}" if link else "-",
    }
    return [cells[title] for title in _titles(width)]
