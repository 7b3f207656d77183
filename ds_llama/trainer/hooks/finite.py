"""Stop a run that learns nothing any more, instead of letting it come to a happy end."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ds_llama.errors import RunError
from ds_llama.trainer.hooks.base import Hook, Row

if TYPE_CHECKING:
    from ds_llama.trainer.job import Job

PATIENCE_STEPS = 3


class StopOnNonFinite(Hook):
    """Raises RunError for a loss that is no number, and for updates that are skipped in a row.

    DeepSpeed skips an update whose gradient is not finite, in every precision, and goes on: a run
    whose weights are spoilt would skip to its last step and call itself finished. Under fp16 the
    loss scale is lowered at each skip, and its end is an error of its own (`zero.engine.step`).
    The row is the same on all ranks, so all of them stop.
    """

    def __init__(self) -> None:
        self.skipped = 0

    def after_step(self, job: Job, row: Row) -> None:
        scaled = row["loss_scale"] is not None
        self.skipped = self.skipped + 1 if row["skipped"] else 0
        if not math.isfinite(row["loss"]) and not (row["skipped"] and scaled):
            self._stop(job, f"the loss is {row['loss']} at step {job.state.step}")
        if self.skipped >= PATIENCE_STEPS and not scaled:
            self._stop(job, f"gradients are not finite, {self.skipped} updates skipped in a row")

    def _stop(self, job: Job, what: str) -> None:
        raise RunError(
            what,
            where=f"step {job.state.step} of {job.resolved.run.output}",
            remedy="lower optimizer.lr, lengthen optimizer.warmup_steps, or look at the data of "
            "these steps; resume from a checkpoint of before",
        )
