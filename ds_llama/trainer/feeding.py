"""A run's training data: how many steps it lasts, and a loader from wherever the run stands.

    samples   0 ......... | seen | left out by a rollback | still to come ...... | end
    steps     made of the samples that were not left out: as many as the run was given

`train.epochs` counts passes over all corpora together. Its last global batch is what is left of
them, so that every sample counts as often as it was asked for.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ds_llama.checkpoint import ranks
from ds_llama.config.resolve import Resolved
from ds_llama.data.collate import Batch
from ds_llama.data.corpora import Corpora, open_corpora, packed_lines
from ds_llama.data.loader import Loader
from ds_llama.data.sample import Dataset
from ds_llama.data.sampler import Order, check_enough, samples_asked
from ds_llama.errors import DataError, DsLlamaError
from ds_llama.trainer.state import TrainState
from ds_llama.zero import world

if TYPE_CHECKING:
    from ds_llama.trainer.job import Job


@dataclass(frozen=True)
class Feed:
    """The corpora of a run and their order."""

    resolved: Resolved
    dataset: Dataset
    order: Order

    @classmethod
    def open(cls, resolved: Resolved) -> Feed:
        """Collective."""
        opened = open_together(resolved, resolved.run.data.train)
        for line in packed_lines(opened[0]) if world.rank() == 0 else ():
            print(line, file=sys.stderr)
        return cls(resolved, *opened)

    def total_steps(self, state: TrainState) -> int:
        """The run's last step, counted from its first, for a run that stands at `state`."""
        return self.resolved.total_steps or state.step + -(
            -self._samples_left(state) // self.resolved.global_batch_size
        )

    def loader(self, state: TrainState) -> Loader:
        """Raises DataError where the corpora hold less than the run still takes."""
        end = state.samples_seen + self._samples_left(state)
        check_enough(self.order, end)
        return Loader.of_run(
            self.resolved,
            self.dataset,
            self.order,
            rank=world.rank(),
            device=world.device(),
            start_step=state.step,
            start_sample=state.samples_seen,
            end_sample=end,
        )

    def _samples_left(self, state: TrainState) -> int:
        train = self.resolved.run.train
        if train.steps is not None:
            return max(0, train.steps - state.step) * self.resolved.global_batch_size
        asked = samples_asked(train, self.order)
        return max(0, asked - (state.samples_seen - state.samples_left_out))


def open_together(resolved: Resolved, paths: Corpora) -> tuple[Dataset, Order]:
    """Of the run's training data or validation; raises on all ranks what one has met."""
    data, seed = resolved.run.data, resolved.run.train.seed
    opening = partial(open_corpora, data, paths, seed)
    return ranks.together("opening the data", paths, opening)


def next_window(job: Job) -> list[Batch]:
    """This rank's micro-batches, or none and `job.unreadable`: what all ranks have to hear of."""
    try:
        return next(job.loader)
    except Exception as error:
        job.unreadable = error
        return []


def raise_unreadable(job: Job) -> None:
    """Raise, on all ranks, what the first of them could not read; collective."""
    own = job.unreadable
    found = ranks.gather(None if own is None else _explained(own, job))
    first = next((error for error in found if error is not None), None)
    if first is not None:
        raise first from own


def _explained(error: Exception, job: Job) -> DsLlamaError:
    if isinstance(error, DsLlamaError):
        return error
    return DataError(
        f"the data could not be read on rank {world.rank()}: {type(error).__name__}: {error}",
        where=f"step {job.state.step + 1} of {job.output}",
        remedy="see to the file system that the shards are on, then resume from a checkpoint",
    )
