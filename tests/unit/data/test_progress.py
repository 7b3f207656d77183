from __future__ import annotations

import io
import sys

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


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with bar_or_lines() as report:
        report(HALF)
    assert "50%" in terminal.getvalue()
    assert "12k tokens" in terminal.getvalue()
