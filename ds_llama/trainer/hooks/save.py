"""Checkpoints, every n steps, at the end, and when asked to stop."""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING

from ds_llama.checkpoint.save import save
from ds_llama.commit import names
from ds_llama.tracking.guard import announce
from ds_llama.trainer.hooks.base import Hook, Row
from ds_llama.units import format_duration
from ds_llama.zero import world

if TYPE_CHECKING:
    from ds_llama.trainer.job import Job

log = logging.getLogger(__name__)


class Save(Hook):
    """Commits a checkpoint every `checkpoint.every_steps`, after the last step, and on a stop.

    With `checkpoint.background` those that training goes on after are written meanwhile; each
    begins when the one before is committed, and the run ends when all are. None of a run that keeps
    a part of its state where DeepSpeed cannot resume it.
    """

    def __init__(self) -> None:
        self.background = False
        self._pause_s: dict[str, float] = {}

    def before_training(self, job: Job) -> None:
        resolved = job.resolved
        wanted = resolved.run.checkpoint.background
        swapped = "nvme" in (resolved.offload_optimizer, resolved.offload_param)
        self.background = wanted and not swapped
        if wanted and swapped and world.rank() == 0:
            log.warning("checkpoint.background: what is on NVMe is not copied, training waits")

    def after_step(self, job: Job, row: Row) -> None:
        every = job.resolved.run.checkpoint.every_steps
        if every and job.state.step % every == 0:
            self._save(job, background=self.background and not job.state.finished)
        self._tell(job)

    def after_training(self, job: Job) -> None:
        unsaved = job.resolved.unsaved
        with job.meter.saving():
            job.background.finish()
        if unsaved is not None:
            log.warning(f"no checkpoint: DeepSpeed cannot resume {unsaved}")
        elif job.state.step > job.state.saved_step:
            self._save(job, background=False)
        self._tell(job)

    def _save(self, job: Job, *, background: bool) -> None:
        settings, state = job.resolved.run.checkpoint, job.state
        recording = job.recording.saving() if job.recording is not None else nullcontext()
        start = time.perf_counter()
        with job.meter.saving(), recording:
            job.background.finish()
            (job.background.save if background else save)(
                job.engine,
                job.checkpoints,
                state.step,
                state.to_dict(),
                job.resolved,
                keep_last=settings.keep_last,
                keep_every_steps=settings.keep_every_steps,
                records=job.records,
            )
        state.saved_step = state.step
        name, pause_s = names.step_name(state.step), time.perf_counter() - start
        if background:
            self._pause_s[name] = pause_s
        else:
            self._say(job, name, pause_s, pause_s)

    def _tell(self, job: Job) -> None:
        for name, write_s in job.background.written():
            self._say(job, name, self._pause_s.pop(name, 0.0), write_s)

    def _say(self, job: Job, name: str, pause_s: float, write_s: float) -> None:
        job.meter.checkpoint_write_s += write_s
        if job.resolved.run.tracking.console and world.rank() == 0:
            line = f"{name} is saved: training stood still for {format_duration(pause_s)}"
            if write_s != pause_s:
                line += f", it was written in {format_duration(write_s)}"
            announce(line)
