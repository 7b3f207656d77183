"""Stop a run that learns nothing any more, instead of letting it come to a happy end."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ds_llama.errors import RunError
from ds_llama.trainer.hooks.base import Hook, Row
from ds_llama.zero import engine as engines
from ds_llama.zero import nonfinite

if TYPE_CHECKING:
    from ds_llama.trainer.job import Job

PATIENCE_STEPS = 3


class StopOnNonFinite(Hook):
    """Raises RunError for a loss that is no number, and for updates that are skipped in a row.

    DeepSpeed skips an update whose gradient is not finite, in every precision, and goes on: a run
    whose weights are spoilt would skip to its last step and call itself finished. A dynamic loss
    scale is lowered at each skip, and its end is an error of its own (`zero.engine.step`); under a
    static one nothing would ever change. The message names the first parameter that is not finite.
    Gradients are gone after a step, so they are looked at before the update that would be the last
    one in patience; a good step costs nothing. All ranks see the same row and stop.
    """

    def __init__(self) -> None:
        self.skipped = 0
        self.patient = False
        self.culprit: str | None = None

    def before_training(self, job: Job) -> None:
        self.patient = engines.scale_is_dynamic(job.engine)
        engines.before_update(job.engine, self._look)

    def after_step(self, job: Job, row: Row) -> None:
        scaled = row["loss_scale"] is not None
        self.skipped = self.skipped + 1 if row["skipped"] else 0
        if not math.isfinite(row["loss"]) and not (row["skipped"] and scaled):
            self.culprit = nonfinite.first_weight(job.engine)
            self._stop(job, f"the loss is {row['loss']} at step {job.state.step}")
        if self.skipped >= PATIENCE_STEPS and not self.patient:
            self._stop(job, f"gradients are not finite, {self.skipped} updates skipped in a row")

    def _look(self, engine: Any) -> None:
        if self.skipped == PATIENCE_STEPS - 1 and not self.patient:
            self.culprit = nonfinite.first(engine)

    def _stop(self, job: Job, what: str) -> None:
        named = f"{self.culprit} is not" if self.culprit else "every weight still is"
        raise RunError(
            f"{what}: {named} finite",
            where=f"step {job.state.step} of {job.resolved.run.output}",
            remedy="lower optimizer.lr, lengthen optimizer.warmup_steps, or look at the data of "
            "these steps; resume from a checkpoint of before",
        )
