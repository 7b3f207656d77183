"""How far a benchmark is: a bar over its launches on a terminal, a line a launch elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ds_llama.units import format_bytes, format_duration

if TYPE_CHECKING:
    from ds_llama.bench.harness import Progress

Report = Callable[["Progress"], None]


@contextmanager
def bar_or_lines() -> Iterator[Report]:
    """Everything goes to stderr: stdout belongs to the result."""
    if not sys.stderr.isatty():
        yield lambda progress: print(line(progress), file=sys.stderr, flush=True)
        return
    with _bar() as report:
        yield report


@contextmanager
def _bar() -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}")
    # Drawn once a second: what is measured has the same cores.
    with Bar(*columns, console=Console(stderr=True), refresh_per_second=1) as bar:
        task = bar.add_task("the first launch", total=None)

        def report(progress: Progress) -> None:
            bar.console.print(outcome(progress.row), highlight=False, markup=False)
            bar.update(
                task, total=progress.total, completed=progress.done, description=left(progress)
            )

        yield report


def line(progress: Progress) -> str:
    """ "3/16 zero3+all bf16 tiny: 5,812 tokens/s, 1.2 GiB (2 min left)"."""
    return f"{progress.done}/{progress.total} {outcome(progress.row)} ({left(progress)})"


def left(progress: Progress) -> str:
    """How long the launches that are left will take, by those that were."""
    if progress.done == progress.total:
        return "the last"
    return f"{format_duration(max(1.0, float(round(progress.left_s))))} left"


def outcome(row: dict[str, Any]) -> str:
    """What came of a cell, on one line."""
    return f"{row['name']}: {result(row)}"


def result(row: dict[str, Any]) -> str:
    """Its speed and memory, or why it has none."""
    if row["status"] != "ok":
        return f"{row['status']}: {row['reason']}"
    measured = row["memory"]["measured"]
    peak = f", {format_bytes(measured['device_peak_bytes'])}" if measured else ""
    return f"{row['tokens_per_s']:,.0f} tokens/s{peak}"
