"""Stop a run whose ranks have come apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ds_llama.trainer.hooks.base import Hook
from ds_llama.zero import engine as engines
from ds_llama.zero import replicas

if TYPE_CHECKING:
    from ds_llama.trainer.job import Job


class CheckReplicas(Hook):
    """Compares the ranks' copies before the update of every n-th step (`zero.replicas`)."""

    def before_training(self, job: Job) -> None:
        every = job.resolved.run.train.check_replicas_every_steps
        if every is None or job.resolved.world_size == 1:
            return

        def check(engine: object) -> None:
            step = job.state.step + 1
            if step % every == 0:
                where = f"step {step} of {job.resolved.run.output}"
                replicas.check(engine, where, **{"count of steps": step})

        engines.before_update(job.engine, check)
