"""A tracker that breaks is dropped; the training that it watches goes on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ds_llama.errors import DsLlamaError
from ds_llama.tracking.base import Row, Tracker


class Guarded:
    """Passes everything on until the tracker raises, then says so once and is silent.

    A DsLlamaError is passed on: it is a mistake that the user can mend before training starts, or
    the loss of the one record that a run cannot go without (metrics.jsonl).
    """

    def __init__(self, tracker: Tracker) -> None:
        self.tracker: Tracker | None = tracker
        self.name = tracker.name

    def start(self, resolved: dict[str, Any], output: Path) -> None:
        self._try("start", lambda tracker: tracker.start(resolved, output))

    def log(self, row: Row) -> None:
        self._try("log", lambda tracker: tracker.log(row))

    def rewind(self, step: int) -> None:
        self._try("rewind", lambda tracker: tracker.rewind(step))

    def close(self, status: str) -> None:
        self._try("close", lambda tracker: tracker.close(status))

    def _try(self, action: str, call: Callable[[Tracker], None]) -> None:
        if self.tracker is None:
            return
        try:
            call(self.tracker)
        except DsLlamaError:
            raise
        except Exception as error:
            self.tracker = None
            announce(
                f"warning: {self.name} failed to {action} ({type(error).__name__}: {error}); "
                "it gets no more rows, training goes on, metrics.jsonl has them all"
            )


def announce(text: str) -> None:
    """One line on stderr, for the person who started the run."""
    print(" ".join(text.split()), file=sys.stderr, flush=True)
