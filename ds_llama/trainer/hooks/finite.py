"""Stop a run whose loss is not a number, before it writes a checkpoint of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ds_llama.errors import RunError
from ds_llama.trainer.hooks.base import Hook, Row

if TYPE_CHECKING:
    from ds_llama.trainer.job import Job


class StopOnNonFinite(Hook):
    """Raises RunError when the global loss is infinite or NaN; it is the same on all ranks."""

    def after_step(self, job: Job, row: Row) -> None:
        if not math.isfinite(row["loss"]):
            raise RunError(
                f"the loss is {row['loss']} at step {job.state.step}",
                where=f"step {job.state.step} of {job.resolved.run.output}",
                remedy="lower optimizer.lr, lengthen optimizer.warmup_steps, or look at the step's "
                "data; the last checkpoint is from before it",
            )
