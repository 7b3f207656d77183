"""Checkpoints, every n steps, at the end, and when asked to stop."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import TYPE_CHECKING

from ds_llama.checkpoint import save
from ds_llama.trainer.hooks.base import Hook, Row

if TYPE_CHECKING:
    from ds_llama.trainer.job import Job

log = logging.getLogger(__name__)


class Save(Hook):
    """Commits a checkpoint every `checkpoint.every_steps`, after the last step, and on a stop.

    None of a run that keeps a part of its state where DeepSpeed cannot resume it.
    """

    def after_step(self, job: Job, row: Row) -> None:
        every = job.resolved.run.checkpoint.every_steps
        if every and job.state.step % every == 0:
            _save(job)

    def after_training(self, job: Job) -> None:
        unsaved = job.resolved.unsaved
        if unsaved is not None:
            log.warning(f"no checkpoint: DeepSpeed cannot resume {unsaved}")
        elif job.state.step > job.state.saved_step:
            _save(job)


def _save(job: Job) -> None:
    settings, state = job.resolved.run.checkpoint, job.state
    recording = job.recording.saving() if job.recording is not None else nullcontext()
    with job.meter.outside_step(), recording:
        save.save(
            job.engine,
            job.checkpoints,
            state.step,
            state.to_dict(),
            job.resolved,
            keep_last=settings.keep_last,
            keep_every_steps=settings.keep_every_steps,
        )
    state.saved_step = state.step
