"""The final weights as Hugging Face safetensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ds_llama.trainer.hooks.base import Hook
from ds_llama.weights.export import export_model

if TYPE_CHECKING:
    from ds_llama.trainer.job import Job


class Export(Hook):
    """Exports to OUTPUT/export after the last step, unless `checkpoint.export` is false."""

    def after_training(self, job: Job) -> None:
        run = job.resolved.run
        if run.checkpoint.export and job.state.finished:
            export_model(
                job.engine.module,
                job.resolved.model,
                job.output / "export",
                tokenizer=run.data.tokenizer,
            )
