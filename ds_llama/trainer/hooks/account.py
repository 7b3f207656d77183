"""The end of the account of a run's first steps, and its report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ds_llama.trainer.hooks.base import Hook, Row

if TYPE_CHECKING:
    from ds_llama.trainer.job import Job


class Account(Hook):
    """Ends the account after the first steps, and writes it when the run ends."""

    def after_step(self, job: Job, row: Row) -> None:
        if job.recording is not None:
            job.recording.step_made()

    def after_training(self, job: Job) -> None:
        if job.recording is not None:
            job.recording.report(job.output)
