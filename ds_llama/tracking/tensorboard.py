"""TensorBoard's event files, where tensorboard is installed."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from ds_llama.errors import MachineError
from ds_llama.tracking import redact
from ds_llama.tracking.base import Row

FOLDER = "tensorboard"


class TensorBoardTracker:
    """Writes OUTPUT/tensorboard. Raises MachineError when tensorboard is not installed."""

    name = "TensorBoard"

    def __init__(self, start_step: int = 0) -> None:
        self._start_step = start_step
        self._writer: Any = None

    def start(self, resolved: dict[str, Any], output: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MachineError(
                f"TensorBoard is asked for and is not installed ({error})",
                where="tracking.tensorboard",
                remedy='pip install "ds_llama[tensorboard]", or set tracking.tensorboard to false',
            ) from error
        self._make = partial(SummaryWriter, str(output / FOLDER), flush_secs=30)
        # steps after a resumed one are hidden by purge_step: they are made again
        self._writer = self._make(purge_step=self._start_step + 1)
        text = json.dumps(redact.without(resolved), indent=2, default=str)
        self._writer.add_text("run", f"```json\n{text}\n```", self._start_step)

    def log(self, row: Row) -> None:
        for key, value in row.items():
            if key != "step" and isinstance(value, int | float):
                self._writer.add_scalar(key, float(value), row["step"])

    def rewind(self, step: int) -> None:
        self._writer.close()
        self._writer = self._make(purge_step=step + 1)

    def close(self, status: str) -> None:
        if self._writer is not None:
            self._writer.add_text("status", status)
            self._writer.close()
