"""Loss on held-out shards while training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ds_llama.trainer.hooks.base import Hook, Row

if TYPE_CHECKING:
    from ds_llama.trainer.job import Job


class Validate(Hook):
    """Adds `validation_loss` and `validation_perplexity` every n steps and at the end."""

    def after_step(self, job: Job, row: Row) -> None:
        every = job.resolved.run.evaluation.every_steps
        if job.validation is None:
            return
        if job.state.finished or (every and job.state.step % every == 0):
            with job.meter.outside_step():
                result = job.validation()
            row["validation_loss"] = result.loss
            row["validation_perplexity"] = result.perplexity
