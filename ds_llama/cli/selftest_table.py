"""The table of `ds-llama selftest`: differences, limits, verdicts."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ds_llama.selftest.outcome import BEYOND, ERROR, NOT_RUN, OK

if TYPE_CHECKING:
    from rich.table import Table

    from ds_llama.selftest.cells import Cell
    from ds_llama.selftest.outcome import Outcome
    from ds_llama.selftest.report import Report

_TITLES = {"loss": "loss", "grad_norm": "grad norm", "clip_coef": "clip", "parameters": "param."}
_STYLES = {OK: "green", BEYOND: "bold red", ERROR: "bold red", NOT_RUN: "dim"}
# Narrower terminals are shown the largest difference only, still narrower ones the verdict.
_WIDE, _MIDDLE = 100, 80


def show(report: Report) -> None:
    """Print the table, why cells did not run, and a sentence that sums it up."""
    from rich.console import Console

    columns = None if sys.stdout.isatty() else _WIDE  # a log is no terminal of 80 columns
    console = Console(width=columns, highlight=False, soft_wrap=False)
    console.print(_title(report))
    console.print(table(report, console.width))
    for reason, names in report.reasons().items():
        console.print(f"{reason}\n  {_listed(names)}", markup=False)
    console.print(report.sentence(), markup=False)


def table(report: Report, width: int) -> Table:
    """A row a cell, under a row with the limits of its precision."""
    from rich.table import Table

    drawn = Table(box=None, pad_edge=False)
    drawn.add_column("cell", overflow="fold")
    for title in _middle_titles(width):
        drawn.add_column(title, justify="right", overflow="fold")
    drawn.add_column("verdict", no_wrap=True)
    if width >= _MIDDLE:
        drawn.add_column("s", justify="right", no_wrap=True)
    limits = None
    for cell, outcome in report.rows:
        if cell.limits != limits and width >= _WIDE:
            limits = cell.limits
            figures = [f"{limit:.1e}" for limit in limits.to_dict().values()]
            drawn.add_row(f"limits of {cell.precision}", *figures, "", "", style="bold")
        drawn.add_row(*_row(cell, outcome, width))
    return drawn


def _middle_titles(width: int) -> list[str]:
    if width >= _WIDE:
        return list(_TITLES.values())
    return ["largest / limit"] if width >= _MIDDLE else []


def _row(cell: Cell, outcome: Outcome, width: int) -> list[Any]:
    from rich.text import Text

    verdict = Text(outcome.verdict, style=_STYLES[outcome.verdict])
    if width < _MIDDLE:
        return [cell.name, verdict]
    seconds = f"{outcome.seconds:.1f}" if outcome.gaps is not None else ""
    return [cell.name, *_middle(cell, outcome, width), verdict, seconds]


def _middle(cell: Cell, outcome: Outcome, width: int) -> list[Any]:
    from rich.text import Text

    if outcome.gaps is None:
        return [""] * len(_middle_titles(width))
    ratios = outcome.gaps.ratios(cell.limits)
    if width < _WIDE:
        name = max(ratios, key=lambda name: ratios[name])
        return [f"{_TITLES[name]} {ratios[name]:.2f}"]
    return [
        Text(f"{getattr(outcome.gaps, name):.1e}", style="" if ratio <= 1 else "bold red")
        for name, ratio in ratios.items()
    ]


def _title(report: Report) -> str:
    about = report.about
    parts = [f"{about['world_size']} x {about.get('device', 'unknown device')}"]
    parts += [f"{name} {version}" for name, version in about.get("versions", {}).items()]
    if report.sabotage:
        parts.append(f"[bold red]sabotaged: {report.sabotage}[/]")
    return "; ".join(parts)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
