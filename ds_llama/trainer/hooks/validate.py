"""Loss on held-out shards while training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ds_llama.measure import pulse
from ds_llama.trainer.hooks.base import Hook, Row
from ds_llama.zero.ema import averaged

if TYPE_CHECKING:
    from ds_llama.evals.perplexity import Perplexity
    from ds_llama.trainer.job import Job


class Validate(Hook):
    """Adds `validation_loss` and `validation_perplexity` every n steps and at the end.

    With `ema.evaluate` also `validation_ema_loss` and `validation_ema_perplexity`.
    """

    def after_step(self, job: Job, row: Row) -> None:
        if job.validation is not None and job.validates(job.state.step):
            with pulse.within("evaluation"), job.meter.outside_step():
                row |= _named("validation", job.validation())
                ema = job.resolved.run.ema
                if ema is not None and ema.evaluate:
                    with averaged(job.engine):
                        row |= _named("validation_ema", job.validation())


def _named(name: str, result: Perplexity) -> Row:
    return {f"{name}_loss": result.loss, f"{name}_perplexity": result.perplexity}
