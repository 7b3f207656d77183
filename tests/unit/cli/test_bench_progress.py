"""What a benchmark says while it runs, on a terminal and elsewhere; wrong calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ds_llama.bench.harness import Progress
from ds_llama.cli.bench_progress import bar_or_lines, line
from ds_llama.cli.main import main

MEASURED: dict[str, Any] = {
    "name": "zero3+all bf16 tiny 1 x 64 on 2",
    "status": "ok",
    "memory": {"measured": {"device_peak_bytes": 3 * 2**20}},
    "tokens_per_s": 5812.4,
}
FAILED = MEASURED | {"status": "timeout", "reason": "not ended after 5 s"}


@pytest.mark.parametrize(
    ("progress", "said"),
    [
        (
            Progress(3, 16, 125.4, MEASURED),
            "3/16 zero3+all bf16 tiny 1 x 64 on 2: 5,812 tokens/s, 3 MiB (2 min 05 s left)",
        ),
        (
            Progress(15, 16, 0.2, MEASURED | {"memory": {"measured": None}}),
            "15/16 zero3+all bf16 tiny 1 x 64 on 2: 5,812 tokens/s (1 s left)",
        ),
        (
            Progress(16, 16, 0.0, FAILED),
            "16/16 zero3+all bf16 tiny 1 x 64 on 2: timeout: not ended after 5 s (the last)",
        ),
    ],
)
def test_a_line_a_launch(progress: Progress, said: str) -> None:
    assert line(progress) == said


def test_without_a_terminal_there_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with bar_or_lines() as say:
        say(Progress(1, 1, 0.0, MEASURED))
    out, err = capsys.readouterr()
    assert out == ""
    assert err == line(Progress(1, 1, 0.0, MEASURED)) + "\n"


@pytest.mark.parametrize("width", ["20", "40", "200"])
def test_a_bar_in_a_narrow_terminal(
    width: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with bar_or_lines() as say:
        say(Progress(1, 2, 9.0, MEASURED))
    out, err = capsys.readouterr()
    assert out == ""
    assert "5,812 tokens/s" in " ".join(err.split())


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ([], "no case is named"),
        (["case.json"], "--out names no folder"),
        (["none.json", "--out", "x"], "cannot be read"),
        (["none.json", "--out", "x", "--repeats", "0"], "Invalid value for '--repeats'"),
    ],
)
def test_wrong_calls(words: list[str], what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    assert what in capsys.readouterr().err


def test_a_case_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = tmp_path / "case.json"
    case.write_text(json.dumps({"sweep": {"model": "tiny"}}))
    assert main(["bench", str(case), "--out", str(tmp_path)]) == 2
    assert "would be written over the case" in capsys.readouterr().err
    assert json.loads(case.read_text()) == {"sweep": {"model": "tiny"}}
