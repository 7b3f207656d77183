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
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TransferSpeedColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)

        def report(progress: Progress) -> None:
            bar.update(
                task,
                total=progress.bytes_total,
                completed=progress.bytes_done,
                description=f"{format_count(progress.tokens)} tokens",
            )

        yield report


def _lines() -> Report:
    start = last = time.monotonic()

    def report(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _LINE_EVERY_S:
            return
        last = now
        print(_line(progress, now - start), file=sys.stderr, flush=True)

    return report


def _line(progress: Progress, elapsed_s: float) -> str:
    rate = progress.bytes_done / elapsed_s
    left = (progress.bytes_total - progress.bytes_done) / rate if rate else float("inf")
    time_left = f", {format_duration(left)} left" if left != float("inf") else ""
    return (
        f"{100 * progress.bytes_done / max(progress.bytes_total, 1):.0f} %, "
        f"{format_count(progress.tokens)} tokens, {format_bytes(rate)}/s{time_left}"
    )
