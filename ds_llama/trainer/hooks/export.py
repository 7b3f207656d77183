"""The final weights as Hugging Face safetensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ds_llama.measure import pulse
from ds_llama.trainer.hooks.base import Hook
from ds_llama.weights.export import export_model
from ds_llama.zero.ema import averaged

if TYPE_CHECKING:
    from ds_llama.trainer.job import Job


class Export(Hook):
    """Exports to OUTPUT/export after the last step, and the average to export-ema, as asked."""

    def after_training(self, job: Job) -> None:
        run = job.resolved.run
        if not job.state.finished:
            return
        if run.checkpoint.export:
            _export(job, "export")
        if run.ema is not None and run.ema.export:
            with averaged(job.engine):
                _export(job, "export-ema")


@pulse.within("export")
def _export(job: Job, name: str) -> None:
    run = job.resolved.run
    export_model(
        job.engine.module,
        job.resolved.model,
        job.output / name,
        tokenizer=run.data.tokenizer or run.model.pretrained,
        generation=run.model.pretrained,
    )
