"""A progress bar on a terminal; a line now and then where there is none, as in a CI log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ds_llama.tracking.base import Row
from ds_llama.units import format_count, format_duration

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_LINES_PER_RUN = 50
_LONGEST_SILENCE_S = 30.0
_NARROWEST_BAR = 8
_SMOOTHING = 0.1


class ConsoleTracker:
    """Step, loss, tokens/s and time left. `stream` (stdout) being a terminal decides the form.

    Without a terminal there are some 50 lines a run: the first step, the last, those with a
    validation, evenly spaced ones, and one after 30 s of silence.
    """

    name = "console"

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._start_step = total_steps, start_step
        self._stream, self._clock = stream, clock
        self._row: Row = {"step": start_step}
        self._eta = TimeLeft(total_steps, start_step, clock)
        self._every = max(1, total_steps // _LINES_PER_RUN)
        self._printed = (start_step, clock())
        self._begin = clock()
        self._console: Console | None = None
        self._live: Any = None

    def start(self, resolved: dict[str, Any], output: Path) -> None:
        from rich.console import Console
        from rich.live import Live

        # the file is given: rich would else look up sys.stdout, which its live display replaces
        self._console = Console(file=self._stream or sys.stdout, soft_wrap=False, highlight=False)
        self._begin = self._clock()
        self._eta.restart()
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(get_renderable=self._bar, console=self._console, refresh_per_second=4)
            self._live.start()

    def log(self, row: Row) -> None:
        self._row = row
        self._eta.update(row["step"])
        if self._live is None:
            if self._is_due(row):
                self._print(self.line(row))
        elif "validation_loss" in row:
            self._print(f"step {row['step']}  {_validation(row)}")

    def rewind(self, step: int) -> None:
        self._start_step, self._row = step, {"step": step}
        self._printed = (step, self._clock())
        self._eta = TimeLeft(self._total, step, self._clock)

    def close(self, status: str) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        steps = self._row["step"] - self._start_step
        spent = format_duration(self._clock() - self._begin)
        self._print(f"{status} at step {self._row['step']}: {steps} steps in {spent}")

    def line(self, row: Row) -> str:
        """One row as plain text."""
        parts = [f"step {row['step']}/{self._total}", *self._figures(row)]
        if "validation_loss" in row:
            parts.append(_validation(row))
        return "  ".join(parts)

    def _figures(self, row: Row) -> list[str]:
        """The most important first: a narrow terminal drops from the end."""
        figures = []
        if isinstance(row.get("loss"), float):
            figures.append(f"loss {row['loss']:.4f}")
        if row.get("tokens_per_s"):
            figures.append(f"{format_count(row['tokens_per_s'])} tokens/s")
        left = self._eta.seconds()
        if left is not None:
            figures.append(f"{format_duration(left)} left")
        if isinstance(row.get("grad_norm"), float):
            figures.append(f"grad norm {row['grad_norm']:.3g}")
        if isinstance(row.get("lr"), float):
            figures.append(f"lr {row['lr']:.2e}")
        if isinstance(row.get("loss_scale"), float):
            figures.append(f"loss scale {row['loss_scale']:g}")
        if row.get("skipped_steps"):
            figures.append(f"{row['skipped_steps']} skipped")
        if row.get("skipped"):
            figures.append("skipped")
        return figures

    def _is_due(self, row: Row) -> bool:
        step, (last, when) = row["step"], self._printed
        return (
            last == self._start_step
            or step >= self._total
            or step // self._every > last // self._every
            or "validation_loss" in row
            or self._clock() - when >= _LONGEST_SILENCE_S
        )

    def _print(self, text: str) -> None:
        if self._console is None:
            return
        self._printed = (self._row["step"], self._clock())
        if self._live is not None:
            self._console.print(text, markup=False)
        else:
            # not through rich, which would break a long line at 80 columns in a log file
            print(text, file=self._stream or sys.stdout, flush=True)

    def _bar(self) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        assert self._console is not None
        step = self._row["step"]
        head, figures, room = self.fit(self._console.width)
        grid = Table.grid(padding=(0, 1), pad_edge=False)
        cells: list[RenderableType] = [Text(head, no_wrap=True, overflow="crop")]
        if room:
            cells.append(ProgressBar(total=max(self._total, 1), completed=step, width=room))
        if figures:
            cells.append(Text(figures, no_wrap=True, overflow="crop"))
        grid.add_row(*cells)
        return grid

    def fit(self, width: int) -> tuple[str, str, int]:
        """What fits into one line of `width` columns: head, figures, and columns for the bar.

        Figures go before the bar does not: first the least important figure, at last the bar.
        """
        head = f"step {self._row['step']}/{self._total}"
        figures = self._figures(self._row)
        while True:
            text = "  ".join(figures)
            room = width - len(head) - len(text) - 2 - bool(text)
            if room >= _NARROWEST_BAR:
                return head, text, min(room, 40)
            if not figures:
                return head[:width], "", 0
            if len(figures) == 1 and len(head) + 1 + len(text) < width:
                return head, text, 0
            figures.pop()


class TimeLeft:
    """Seconds until the last step, from a moving average of the time that a step takes.

    The first step is left out when there is another: it compiles, allocates and warms up.
    """

    def __init__(self, total_steps: int, start_step: int, clock: Callable[[], float]) -> None:
        self._total, self._clock = total_steps, clock
        self._step, self._first = start_step, True
        self._when = clock()
        self._each: float | None = None

    def restart(self) -> None:
        """Time starts here."""
        self._when = self._clock()

    def update(self, step: int) -> None:
        """`step` has just been done."""
        now = self._clock()
        if step <= self._step:
            return
        each = (now - self._when) / (step - self._step)
        if self._each is None or self._first:
            self._first = self._each is None
            self._each = each
        else:
            self._each += _SMOOTHING * (each - self._each)
        self._step, self._when = step, now

    def seconds(self) -> float | None:
        """None before the first step."""
        return None if self._each is None else max(self._total - self._step, 0) * self._each


def _validation(row: Row) -> str:
    text = (
        f"validation loss {row['validation_loss']:.4f}, "
        f"perplexity {row['validation_perplexity']:.4g}"
    )
    average = row.get("validation_ema_loss")
    return text if average is None else f"{text}, loss of the average {average:.4f}"
