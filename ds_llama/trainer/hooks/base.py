"""The protocol of a hook."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ds_llama.trainer.job import Job

Row = dict[str, Any]


class Hook:
    """Called on every rank, in the same order everywhere, so that a hook may be collective."""

    def before_training(self, job: Job) -> None:
        """Before the first step, after a resume."""

    def after_step(self, job: Job, row: Row) -> None:
        """After each update; `row` is what will be logged, and may be added to."""

    def after_training(self, job: Job) -> None:
        """After the last step, or after a stop that was asked for."""
