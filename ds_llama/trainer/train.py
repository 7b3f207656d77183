"""`train(engine, run)`: from a registered model to a finished, saved and exported run."""

from __future__ import annotations

from typing import Any

from ds_llama.config.run import Run
from ds_llama.trainer.account import Recording
from ds_llama.trainer.job import open_job, run_lock
from ds_llama.trainer.loop import run_steps
from ds_llama.trainer.state import TrainState
from ds_llama.trainer.watching import watched


def train(engine: Any, run: Run, *, resume: str = "auto") -> TrainState:
    """Train `engine` (from `register`) on the run's data to its last step; collective.

    `resume`: "auto" goes on from the newest complete checkpoint if there is one, "required" stops
    without one, "never" stops with one. SIGINT, SIGTERM and SIGUSR1 end training at the next step
    with a checkpoint; the state's `stopped_by` is then the signal's number.
    Raises DataError, CheckpointError or RunError; what was committed stays whole.
    """
    with run_lock(run), watched(run), Recording.of(run) as recording:
        return train_locked(engine, run, resume, recording)


def train_locked(engine: Any, run: Run, resume: str, recording: Recording | None) -> TrainState:
    """`train` by one who holds `run_lock` already, from before the run's files were written."""
    with open_job(engine, run, resume) as job:
        job.recording = recording
        run_steps(job)
        return job.state
