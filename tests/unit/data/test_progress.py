from __future__ import annotations

import io
import re
import sys
from dataclasses import replace

import pytest

from ds_llama.cli.data_progress import bar_or_lines
from ds_llama.data.prepare import Progress

HALF = Progress(bytes_done=1 << 20, bytes_total=2 << 20, documents=5, tokens=12_000)


def test_lines_come_every_few_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 1.0, 8.0, 9.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with bar_or_lines() as report:
        for _ in range(3):
            report(HALF)
    assert capsys.readouterr() == ("", "50 %, 12k tokens, 128 KiB/s, 8 s left\n")


def test_what_was_done_before_is_said_and_is_no_speed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 8.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with bar_or_lines() as report:
        report(replace(HALF, bytes_before=1 << 19))
    lines = "going on at 25 %\n50 %, 12k tokens, 64 KiB/s, 16 s left\n"
    assert capsys.readouterr() == ("", lines)


@pytest.mark.parametrize("columns", [40, 100])
def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    with bar_or_lines() as report:
        report(replace(HALF, bytes_before=1 << 19))
        report(HALF)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    lines = [line for line in re.split(r"[\r\n]+", shown) if line]
    assert max(map(len, lines)) <= columns
    assert "going on at 25 %" in lines
    assert " 50%" in lines[-1]
    assert ("12k tokens" in lines[-1]) == (columns == 100)
