"""How far `ds-llama data prepare` is: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ds_llama.units import format_bytes, format_count, format_duration

if TYPE_CHECKING:
    from ds_llama.data.prepare import Progress

_LINE_EVERY_S = 5.0
_WIDE_COLUMNS = 64  # below, tokens give way to the bar
Report = Callable[["Progress"], None]


@contextmanager
def bar_or_lines() -> Iterator[Report]:
    """Everything goes to stderr: stdout belongs to the result."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    with _bar() as report:
        yield report


@contextmanager
def _bar() -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar
    from rich.table import Column

    console = Console(stderr=True)
    columns: list[ProgressColumn] = [
        BarColumn(bar_width=None, table_column=Column(ratio=1)),
        TextColumn("{task.percentage:>3.0f}%", table_column=Column(no_wrap=True)),
        TransferSpeedColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(
            compact=True, elapsed_when_finished=True, table_column=Column(no_wrap=True)
        ),
    ]
    if console.width >= _WIDE_COLUMNS:
        columns.append(TextColumn("{task.description}", table_column=Column(no_wrap=True)))
    with Bar(*columns, console=console, expand=True) as bar:
        tasks = []

        def report(progress: Progress) -> None:
            if not tasks:
                # What another process has done says nothing of how fast this one is.
                before, total = progress.bytes_before, progress.bytes_total
                tasks.append(bar.add_task("", total=total, completed=before))
                if before:
                    bar.console.print(_resumed(progress))
            tokens = f"{format_count(progress.tokens)} tokens"
            bar.update(tasks[0], completed=progress.bytes_done, description=tokens)

        yield report


def _lines() -> Report:
    start = last = time.monotonic()
    said = False

    def report(progress: Progress) -> None:
        nonlocal last, said
        if progress.bytes_before and not said:
            print(_resumed(progress), file=sys.stderr, flush=True)
        said, now = True, time.monotonic()
        if now - last < _LINE_EVERY_S:
            return
        last = now
        print(_line(progress, now - start), file=sys.stderr, flush=True)

    return report


def _resumed(progress: Progress) -> str:
    return f"going on at {100 * progress.bytes_before / max(progress.bytes_total, 1):.0f} %"


def _line(progress: Progress, elapsed_s: float) -> str:
    rate = (progress.bytes_done - progress.bytes_before) / elapsed_s
    left = (progress.bytes_total - progress.bytes_done) / rate if rate else float("inf")
    time_left = f", {format_duration(left)} left" if left != float("inf") else ""
    return (
        f"{100 * progress.bytes_done / max(progress.bytes_total, 1):.0f} %, "
        f"{format_count(progress.tokens)} tokens, {format_bytes(rate)}/s{time_left}"
    )
