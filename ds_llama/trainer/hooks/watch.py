"""What follows from a validation loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ds_llama.trainer.hooks.base import Hook, Row

if TYPE_CHECKING:
    from ds_llama.trainer.job import Job


class Watch(Hook):
    """Shows each validation loss to the plateau schedule, after the warm-up, and early stopping.

    The loss is that of the weights that are trained, not of their average, and the same on all
    ranks. The row that ends a run has `ended_early`. What is measured only because the run ends
    does not count, since a longer run would not have seen it.
    """

    def after_step(self, job: Job, row: Row) -> None:
        every = job.resolved.run.evaluation.every_steps
        if "validation_loss" not in row or (every and job.state.step % every):
            return
        loss, state, section = row["validation_loss"], job.state, job.resolved.run.optimizer
        plateau = section is not None and section.schedule == "plateau"
        if plateau and state.step >= section.warmup_steps:
            state.plateau.see(loss, section)
        if state.early_stopping is not None:
            state.patience.see(loss, state.step, state.early_stopping)
        if state.ended_early is not None:
            row["ended_early"] = True
