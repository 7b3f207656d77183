"""The loop. Everything that is not a step is a hook."""

from __future__ import annotations

import signal

from ds_llama.trainer.job import Job
from ds_llama.zero import engine as engines
from ds_llama.zero.step import take_step


def run_steps(job: Job) -> None:
    """Train until the last step, or until any rank has been asked to stop."""
    state, engine, meter = job.state, job.engine, job.meter
    windows = iter(job.loader)
    for hook in job.hooks:
        hook.before_training(job)
    while not state.finished:
        with meter.waiting_for_data():
            window = next(windows)
        if job.schedule is not None:
            engines.set_lr(engine, job.schedule(state.step))
        lr = engines.get_lr(engine)
        stop = job.stop.requested or job.background.failed
        result = take_step(engine, window, stop=stop)
        if result is None:
            job.background.finish()  # raises what failed
            state.stopped_by = job.stop.signum or signal.SIGTERM
            break
        state.advance(result.tokens, job.resolved.global_batch_size, applied=result.applied)
        row = meter.row(state, result, lr)
        for hook in job.hooks:
            hook.after_step(job, row)
    for hook in job.hooks:
        hook.after_training(job)
