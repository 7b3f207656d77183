from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_llama.tracking.console import ConsoleTracker, TimeLeft


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _row(step: int, **more: Any) -> dict[str, Any]:
    row = {"step": step, "loss": 5.25, "tokens_per_s": 12_345.0, "lr": 3e-4, "grad_norm": 1.5}
    return {**row, **more}


def _run(steps: int, step_s: float = 1.0, start: int = 0, **more: Any) -> list[str]:
    stream, clock = io.StringIO(), Clock()
    tracker = ConsoleTracker(steps, start, stream=stream, clock=clock)
    from pathlib import Path

    tracker.start({}, Path())
    for step in range(start + 1, steps + 1):
        clock.now += step_s
        tracker.log(_row(step, **(more if step == 3 else {})))
    tracker.close("finished")
    return stream.getvalue().splitlines()


def test_a_log_gets_plain_lines() -> None:
    lines = _run(4)
    assert lines[0] == (
        "step 1/4  loss 5.2500  12.3k tokens/s  3 s left  grad norm 1.5  lr 3.00e-04"
    )
    assert lines[-1] == "finished at step 4: 4 steps in 4 s"
    assert len(lines) == 5
    assert all("\x1b" not in line and "\r" not in line for line in lines)


def test_a_long_run_gets_some_fifty_lines() -> None:
    lines = _run(5000, step_s=0.01)
    assert 50 <= len(lines) <= 53
    assert [line.split()[1] for line in lines[:3]] == ["1/5000", "100/5000", "200/5000"]
    assert lines[-2].startswith("step 5000/5000")


def test_slow_steps_are_not_silent() -> None:
    lines = _run(1000, step_s=15.0)
    assert len(lines) >= 500


def test_a_validation_is_always_shown() -> None:
    lines = _run(1000, step_s=0.01, validation_loss=3.5, validation_perplexity=33.115)
    shown = [line for line in lines if "validation" in line]
    assert len(shown) == 1
    assert shown[0].startswith("step 3/1000")
    assert shown[0].endswith("validation loss 3.5000, perplexity 33.12")


def test_a_resumed_run_starts_where_it_was() -> None:
    lines = _run(12, start=10)
    assert lines[0].startswith("step 11/12")
    assert lines[-1] == "finished at step 12: 2 steps in 2 s"


def test_a_row_without_figures_is_shown() -> None:
    tracker = ConsoleTracker(10, stream=io.StringIO())
    assert tracker.line({"step": 2, "loss": None, "grad_norm": None, "skipped": True}) == (
        "step 2/10  skipped"
    )


def test_time_left_forgets_the_first_step() -> None:
    clock = Clock()
    left = TimeLeft(12, 0, clock)
    assert left.seconds() is None
    clock.now = 60.0  # the first step compiles
    left.update(1)
    assert left.seconds() == pytest.approx(11 * 60)
    clock.now += 2.0
    left.update(2)
    assert left.seconds() == pytest.approx(20.0)
    clock.now += 8.0
    left.update(4)  # two steps of 4 s
    assert left.seconds() == pytest.approx(8 * 2.2)
    left.update(4)
    clock.now += 1.0
    left.update(12)
    assert left.seconds() == 0.0


@given(
    width=st.integers(1, 200),
    step=st.integers(0, 10**7),
    total=st.integers(1, 10**7),
    loss=st.none() | st.floats(allow_nan=True),
    tokens=st.none() | st.floats(0, 1e12),
)
def test_one_line_at_any_width(
    width: int, step: int, total: int, loss: float | None, tokens: float | None
) -> None:
    tracker = ConsoleTracker(total, stream=io.StringIO())
    tracker.log({"step": step, "loss": loss, "tokens_per_s": tokens, "lr": 1e-3})
    head, figures, bar = tracker.fit(width)
    parts = [part for part in (len(head), bar, len(figures)) if part]
    assert sum(parts) + len(parts) - 1 <= max(width, 1)
    assert bar == 0 or bar >= 8


_ON_A_TERMINAL = """
import time
from pathlib import Path
from ds_llama.tracking.console import ConsoleTracker
tracker = ConsoleTracker(30)
tracker.start({}, Path())
for step in range(1, 31):
    row = {"step": step, "loss": 5.25, "tokens_per_s": 12345.0, "lr": 3e-4, "grad_norm": 1.5}
    if step == 10:
        row.update(validation_loss=3.5, validation_perplexity=33.1)
        print("a line from elsewhere")
    tracker.log(row)
    time.sleep(0.02)
tracker.close("finished")
"""


def _on_a_terminal(columns: int) -> str:
    """What a real terminal of that many columns is sent."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in _RICH_READS}
    child = subprocess.Popen(
        [sys.executable, "-c", _ON_A_TERMINAL],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={**environment, "TERM": "xterm"},
    )
    os.close(follower)
    received = b""
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # EIO: the other end is closed
            break
        if not chunk:
            break
        received += chunk
    os.close(leader)
    assert child.wait(30) == 0, received.decode()
    return received.decode()


_RICH_READS = {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@pytest.mark.parametrize("columns", [28, 60, 120])
def test_a_terminal_gets_a_bar_that_never_wraps(columns: int) -> None:
    sent = _on_a_terminal(columns)
    assert "\x1b[2K" in sent  # one line, drawn over
    lines = _ESCAPES.sub("", sent).replace("\r", "\n").splitlines()
    bars = [line.rstrip() for line in lines if re.match(r"step \d+/30", line)]
    assert bars
    assert max(map(len, bars)) <= columns
    assert any(bar.startswith("step 30/30") for bar in bars)
    assert any("a line from elsewhere" in line for line in lines)
    assert "finished at step 30" in " ".join(lines)
    if columns >= 60:
        assert any("━" in bar and "loss 5.2500" in bar and "left" in bar for bar in bars)
        assert any("validation loss 3.5000, perplexity 33.1" in line for line in lines)
