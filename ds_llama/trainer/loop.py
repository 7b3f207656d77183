"""The loop. Everything that is not a step is a hook."""

from __future__ import annotations

import signal
from functools import partial

from ds_llama.checkpoint import ranks
from ds_llama.measure import pulse
from ds_llama.trainer import events, feeding
from ds_llama.trainer.guard import Guard
from ds_llama.trainer.job import Job
from ds_llama.trainer.rollback import roll_back
from ds_llama.zero import engine as engines
from ds_llama.zero import world
from ds_llama.zero.step import take_step


def run_steps(job: Job) -> None:
    """Train until the last step, or until any rank has been asked to stop."""
    state, engine, meter = job.state, job.engine, job.meter
    guard = Guard(engine, state, job.resolved.run.stability, str(job.output), partial(_note, job))
    first = state.step
    for hook in job.hooks:
        hook.before_training(job)
    while not state.finished:
        pulse.HERE.at_step(state.step + 1, first=state.step <= first)
        with pulse.within("data"), meter.waiting_for_data():
            window = feeding.next_window(job)
        if job.schedule is not None:
            engines.set_lr(engine, job.schedule(state.step))
        lr = engines.get_lr(engine)
        stop = job.stop.requested or job.background.failed or job.unreadable is not None
        result = take_step(engine, window, stop=stop, accept=guard.accepts)
        if result is None:
            with pulse.within("save"):
                job.background.finish()  # raises what failed
            feeding.raise_unreadable(job)
            # The one exit code of all ranks: those of a host may not have had the signal yet.
            state.stopped_by = max(ranks.gather(job.stop.signum or 0)) or signal.SIGTERM
            break
        if (why := guard.settle(result)) is not None:
            roll_back(job, why)
            continue
        state.advance(result.tokens, job.loader.samples, applied=result.applied)
        row = meter.row(
            state, result, lr, logged=job.logs(state.step), imbalance=job.loader.imbalance
        )
        for hook in job.hooks:
            hook.after_step(job, row)
    for hook in job.hooks:
        hook.after_training(job)


def _note(job: Job, event: str, why: str) -> None:
    """An update was skipped, or is why the run ends, which is then an error that says so itself."""
    if world.rank() == 0:
        samples = [job.state.samples_seen, job.state.samples_seen + job.loader.samples]
        tell = events.record if event == "skip" else events.append
        tell(job.output, event, job.state.step + 1, why, samples=samples)
