"""All that one training run holds: engine, data, position, trackers, hooks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ds_llama.checkpoint import ranks
from ds_llama.checkpoint import resume as resuming
from ds_llama.checkpoint import state as states
from ds_llama.checkpoint.background import Background
from ds_llama.checkpoint.choose import choose
from ds_llama.commit.lock import RunLock
from ds_llama.config.changes import changes
from ds_llama.config.resolve import Resolved
from ds_llama.config.run import Run
from ds_llama.data.loader import Loader
from ds_llama.evals.perplexity import Perplexity, evaluate
from ds_llama.measure import memory
from ds_llama.planner import hardware
from ds_llama.tracking import Tracker, jsonl, open_trackers
from ds_llama.trainer import events
from ds_llama.trainer.account import Recording
from ds_llama.trainer.feeding import Feed, open_together
from ds_llama.trainer.hooks import Hook, default_hooks
from ds_llama.trainer.metrics import Meter
from ds_llama.trainer.signals import StopRequest
from ds_llama.trainer.state import TrainState
from ds_llama.zero import schedule as schedules
from ds_llama.zero import world


@dataclass
class Job:
    """One run on one rank. `hooks` and `trackers` may be added to before the loop starts."""

    engine: Any
    resolved: Resolved
    state: TrainState
    loader: Loader
    open_loader: Callable[[TrainState], Loader]
    stop: StopRequest
    meter: Meter
    schedule: schedules.Schedule | None = None
    validation: Callable[[], Perplexity] | None = None
    trackers: list[Tracker] = field(default_factory=list)
    hooks: Sequence[Hook] = field(default_factory=default_hooks)
    recording: Recording | None = None
    background: Background = field(default_factory=Background)
    unreadable: Exception | None = None

    @property
    def output(self) -> Path:
        """The run's folder."""
        return Path(self.resolved.run.output)

    def logs(self, step: int) -> bool:
        """Whether the row of this step goes to the trackers."""
        run = self.resolved.run
        return self.state.finished or step % run.train.log_every_steps == 0 or self.validates(step)

    def validates(self, step: int) -> bool:
        """Whether the loss on held-out shards is measured after this step."""
        every = self.resolved.run.evaluation.every_steps
        due = self.state.finished or (every is not None and step % every == 0)
        return self.validation is not None and due

    @property
    def checkpoints(self) -> Path:
        """Where the run's checkpoints are."""
        return self.output / "checkpoints"

    @property
    def records(self) -> list[Path]:
        """Files with a line a step or an event, which a checkpoint must not be ahead of."""
        return [self.output / jsonl.FILE_NAME, self.output / events.NAME]


@contextmanager
def open_job(engine: Any, run: Run, resume: str) -> Iterator[Job]:
    """Everything that the loop needs, on every rank; closed in reverse order whatever happens.

    To be entered under `run_lock`.
    """
    resolved = engine.ds_llama.resolved
    output = Path(resolved.run.output)
    with ExitStack() as stack:
        checkpoint = choose(output / "checkpoints", resume)
        feed = Feed.open(resolved)
        state = TrainState(0, early_stopping=resolved.run.evaluation.early_stopping)
        if checkpoint is not None:
            with memory.Watch() as watch:
                state.restore(resuming.load(engine, checkpoint, resolved))
            most = max(ranks.gather(watch), key=lambda watch: watch.peak_bytes or 0)
            if world.rank() == 0:
                _say_resumed(checkpoint, resolved, most)
        state.total_steps = feed.total_steps(state)
        loader = feed.loader(state)
        stack.callback(loader.close)
        job = Job(
            engine,
            resolved,
            state,
            loader,
            feed.loader,
            stack.enter_context(StopRequest()),
            Meter(resolved, _peak_flops(resolved)),
            schedule=schedule_of(resolved, state),
            validation=_validation(engine, resolved),
        )
        stack.callback(lambda: job.loader.close())  # a rollback opens another
        stack.callback(lambda: [tracker.close(_status(job)) for tracker in job.trackers])
        stack.callback(job.background.close)
        ranks.together("starting the trackers", output, lambda: _start_trackers(job), only=0)
        yield job


@contextmanager
def run_lock(run: Run) -> Iterator[None]:
    """Rank 0 holds the lock of the run's folder; the others learn whether it could. Collective."""
    output = Path(run.output)
    lock = RunLock(output)
    ranks.together("locking the run folder", output, lambda: _without_result(lock.acquire), only=0)
    try:
        yield
    finally:
        lock.release()


def _without_result(action: Callable[[], object]) -> None:
    """Results of one rank are sent to all; a lock or a tracker cannot be."""
    action()


def _say_resumed(folder: Path, resolved: Resolved, most: memory.Watch) -> None:
    """`most`: of the rank that took the most memory."""
    then = states.read(folder)["run"]
    lines = "".join(f"\n  {line}" for line in changes(then, resolved.to_json()))
    what = f"\nwhat has changed since it was saved:{lines}" if lines else ""
    print(f"going on from {folder.name}, loaded in {most}{what}", file=sys.stderr)


def schedule_of(resolved: Resolved, state: TrainState) -> schedules.Schedule | None:
    """The run's own schedule; None leaves the learning rate to the DeepSpeed JSON."""
    section = resolved.run.optimizer
    return schedules.build(section, state.total_steps, state.plateau) if section else None


def _validation(engine: Any, resolved: Resolved) -> Callable[[], Perplexity] | None:
    data, settings = resolved.run.data, resolved.run.evaluation
    if data.validation is None:
        return None
    dataset = open_together(resolved, data.validation)[0]
    return lambda: evaluate(
        engine,
        dataset,
        micro_batch_size=resolved.micro_batch_size,
        max_batches=settings.max_batches,
    )


def _peak_flops(resolved: Resolved) -> float | None:
    """Vendor's peak of this device in the run's dtype; None where it is not known."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    tf32 = torch.backends.cuda.matmul.allow_tf32
    return hardware.peak_flops(name, resolved.dtype, tf32=tf32)


def _start_trackers(job: Job) -> None:
    for problem in job.resolved.problems:
        print(f"warning: {problem.key}: {problem.message}; {problem.remedy}", file=sys.stderr)
    job.trackers = open_trackers(
        job.resolved.run,
        job.output,
        total_steps=job.state.total_steps,
        start_step=job.state.step,
        goes_on=not job.state.finished,
    )


def _status(job: Job) -> str:
    if job.state.ended_early is not None:
        return f"finished early ({job.state.ended_early})"
    if job.state.finished:
        return "finished"
    return "stopped" if job.state.stopped_by else "failed"
