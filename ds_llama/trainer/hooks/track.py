"""Rows to the console, metrics.jsonl, W&B and TensorBoard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ds_llama.trainer.hooks.base import Hook, Row

if TYPE_CHECKING:
    from ds_llama.trainer.job import Job


class Track(Hook):
    """Writes every `train.log_every_steps`-th row, the last one, and those with a validation."""

    def after_step(self, job: Job, row: Row) -> None:
        if job.logs(job.state.step):
            row |= job.meter.saves()
            for tracker in job.trackers:
                tracker.log(row)
