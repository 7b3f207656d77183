"""What `ds-llama report` prints: what to take, the cells of each group, and where the files are."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING

from ds_llama.units import format_bytes

if TYPE_CHECKING:
    from rich.table import Table

    from ds_llama.bench.report.advise import Advice
    from ds_llama.bench.report.compare import Comparison
    from ds_llama.bench.report.groups import Group, Parity
    from ds_llama.bench.report.write import Report

_WIDE = 100
# What goes first where a terminal has no room for all.
_DROPPED = ("range", "MFU", "to ref.")


def show(report: Report) -> None:
    """Print it to stdout, within the terminal's width."""
    from rich.console import Console

    from ds_llama.bench.report.advise import sentences
    from ds_llama.bench.report.words import counted

    columns = None if sys.stdout.isatty() else _WIDE  # a log is no terminal of 80 columns
    console = Console(width=columns, highlight=False, soft_wrap=False)
    for group, advice in report.found:
        if group.cells:
            console.print(f"[bold]{_plain(group.title)}[/]")
            console.print(fitting(group, advice, console.width))
            console.print(" ".join(sentences(group, advice)), markup=False, style="green")
            console.print()
    for line in _rest(report):
        console.print(line, markup=False)
    if report.comparison is not None:
        _change(report.comparison, console.print)
    pictures = sum(path.suffix == ".png" for path in report.files)
    names = [path.name for path in report.files if path.suffix != ".png"]
    # One line a path, whatever the width: it is there to be copied.
    console.print(f"{report.files[0]}", markup=False, soft_wrap=True)
    plots = counted(pictures, "plot")
    console.print(f"beside it: {', '.join(names[1:])} and {plots}", markup=False)
    if report.removed:
        names = [path.name for path in report.removed]
        console.print(f"removed, of an earlier report: {', '.join(names)}", markup=False)


def fitting(group: Group, advice: Advice, width: int) -> Table:
    """A row a cell, with as many columns as there is room for."""
    dropped: tuple[str, ...] = ()
    for number in range(len(_DROPPED) + 1):
        dropped = _DROPPED[:number]
        table = _table(group, advice, dropped)
        if sum(max(map(len, column)) + 2 for column in _text(group, advice, dropped)) <= width:
            break
    return table


def _table(group: Group, advice: Advice, dropped: tuple[str, ...]) -> Table:
    from rich.table import Table

    drawn = Table(box=None, pad_edge=False)
    columns = _text(group, advice, dropped)
    for number, (title, *_) in enumerate(columns):
        drawn.add_column(title, justify="right" if number else "left", overflow="fold")
    for number, cell in enumerate(group.cells, start=1):
        values = [_plain(column[number]) for column in columns]
        drawn.add_row(*values, style="bold green" if cell is advice.take else "")
    return drawn


def _text(group: Group, advice: Advice, dropped: tuple[str, ...]) -> list[list[str]]:
    """The table by columns, each with its title first."""
    from ds_llama.bench.report.advise import speed
    from ds_llama.bench.report.words import percent

    columns: dict[str, list[str]] = {
        title: [] for title in ("cell", "tokens/s", "range", "peak", "MFU", "to ref.")
    }
    for cell in group.cells:
        measured, gap = group.measured(cell), group.parity(cell)
        found, held = speed(measured), measured.memory_bytes
        columns["cell"].append(f"{'>' if cell is advice.take else ' '} {group.name(cell)}")
        columns["tokens/s"].append(f"{found.tokens_per_s:,.0f}")
        columns["range"].append(f"{found.low:,.0f} to {found.high:,.0f}")
        columns["peak"].append("-" if held is None else format_bytes(held))
        columns["MFU"].append("-" if measured.mfu is None else percent(measured.mfu))
        columns["to ref."].append("reference" if gap is None else _worst(gap))
    return [[title, *each] for title, each in columns.items() if title not in dropped]


def _worst(gap: Parity) -> str:
    """The first difference that is beyond its limit, else that of the last loss."""
    from ds_llama.bench.report.groups import PARITY
    from ds_llama.bench.report.words import signed

    each = dict(zip(PARITY, (gap.first_loss, gap.last_loss, gap.grad_norm), strict=True))
    name = gap.beyond[0] if gap.beyond else "last loss"
    return f"{name} {signed(each[name])} !" if gap.beyond else signed(each[name])


def _rest(report: Report) -> list[str]:
    """How many cells have no numbers, by what came of them."""
    failed = Counter(cell.status for group, _ in report.found for cell in group.failed)
    if not failed:
        return []
    said = ", ".join(f"{number} {status}" for status, number in failed.items())
    return [f"not measured: {said}"]


def _change(comparison: Comparison, say: object) -> None:
    from rich.console import Console
    from rich.table import Table

    from ds_llama.bench.report.changes import sentence, table

    assert callable(say)
    found = table(comparison)
    width = Console().width if sys.stdout.isatty() else _WIDE
    kept = range(len(found.head)) if width >= _WIDE else (0, 1, 3, 5)
    drawn = Table(box=None, pad_edge=False)
    for index in kept:
        drawn.add_column(found.head[index], justify="right" if index else "left", overflow="fold")
    for row in found.rows:
        drawn.add_row(*(_plain(row[index]) for index in kept))
    if found.rows:
        say(drawn)
    say(sentence(comparison), markup=False)
    say("")


def _plain(text: str) -> str:
    """So that rich reads no markup in it."""
    return text.replace("[", "\\[")
