from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ds_llama.errors import RunError
from ds_llama.tracking.guard import Guarded


class Breaks:
    """A tracker whose disk or network goes away at step 2."""

    name = "W&B"

    def __init__(self, error: Exception) -> None:
        self.error, self.calls = error, 0

    def start(self, resolved: dict[str, Any], output: Path) -> None:
        self.calls += 1

    def log(self, row: dict[str, Any]) -> None:
        self.calls += 1
        if row["step"] == 2:
            raise self.error

    def close(self, status: str) -> None:
        self.calls += 1


def test_one_warning_then_silence(capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Breaks(OSError(28, "No space left on device"))
    guarded = Guarded(tracker)
    guarded.start({}, Path())
    for step in (1, 2, 3, 4):
        guarded.log({"step": step})
    guarded.close("finished")
    assert tracker.calls == 3
    assert capsys.readouterr().err == (
        "warning: W&B failed to log (OSError: [Errno 28] No space left on device); it gets no more "
        "rows, training goes on, metrics.jsonl has them all\n"
    )


def test_our_own_errors_end_the_run() -> None:
    guarded = Guarded(Breaks(RunError("full", where="metrics.jsonl", remedy="free space")))
    guarded.start({}, Path())
    with pytest.raises(RunError, match="full"):
        guarded.log({"step": 2})
