"""What a tracker is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

Row = dict[str, Any]
"""Column -> number, bool or None; `step` is always there and counts from 1."""


class Tracker(Protocol):
    """One place that a run's rows go to. Only rank 0 has trackers."""

    name: str

    def start(self, resolved: dict[str, Any], output: Path) -> None:
        """Before the first row: what the run is, and the folder that it writes to."""

    def log(self, row: Row) -> None:
        """One row, in the order of its steps."""

    def rewind(self, step: int) -> None:
        """The run is back at `step`: rows later than it are made again."""

    def close(self, status: str) -> None:
        """After the last row: "finished", "finished early (why)", "stopped" (signal), "failed"."""
