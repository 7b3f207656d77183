"""Batches for one rank, prefetched in a thread. Their content is a function of (seed, step)."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import NamedTuple

import numpy as np
import torch

from ds_llama.config.resolve import Resolved
from ds_llama.data.balance import Bin, Cost, Shape, assign, in_order
from ds_llama.data.collate import Batch, collate
from ds_llama.data.sample import IGNORED, Dataset, Sample
from ds_llama.data.sampler import Order
from ds_llama.data.shards import vocabulary_error
from ds_llama.errors import ConfigError, RunError

_POLL_S = 0.1


class Window(NamedTuple):
    """One step of one rank; samples of the whole global batch; see `Loader.imbalance`."""

    batches: list[Batch]
    samples: int
    imbalance: float | None


class Loader:
    """Steps for one rank; a step is a list of micro-batches, one per accumulation.

    Each micro-batch is what `collate` makes of its samples. Step s, from 0, is made of the samples
    s*G ... (s+1)*G-1 of the order whatever the world size; G is `global_batch_size`. A run that
    goes on with another G says how many samples it has seen: `start_sample`, the first of
    `start_step`.

        samples   0 1 | 2 3 | 4 5 | 6 7        G = 8, micro 2, world 2, accumulation 2
        rank      0     1     0     1
        micro     0     0     1     1

    With `cost`, rows whose documents are kept apart are assigned to ranks by the work that they are
    (`data.balance`), as many to a micro-batch as have room.

    Without `end_sample` there is no end. With it the last step has what is left, and every rank as
    many micro-batches as ever: rows whose labels are all -100 stand where there is no sample, which
    a loss per token of the global batch does not see.

    What goes wrong in the thread is raised by `next`. After it, `samples` is the size of the global
    batch that the step is of, and `imbalance` the work of its longest ranks over the mean, None
    where all rows are alike. Call `close`, or use it as a context manager.

    device: batches are put into pinned memory for a CUDA one, in the thread.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: Order,
        *,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        start_step: int = 0,
        start_sample: int | None = None,
        end_sample: int | None = None,
        vocab_size: int | None = None,
        sequence_length: int | None = None,
        cost: Cost | None = None,
        device: torch.device | None = None,
        prefetch_steps: int = 4,
    ) -> None:
        self.accumulation_steps, rest = divmod(global_batch_size, micro_batch_size * world_size)
        if rest or not self.accumulation_steps:
            raise ConfigError(
                f"a global batch of {global_batch_size} cannot be cut into micro-batches of "
                f"{micro_batch_size} on {world_size} ranks",
                where="train.global_batch_size",
                remedy=f"make it a multiple of {micro_batch_size * world_size}",
            )
        self.dataset, self.sampler, self.vocab_size = dataset, sampler, vocab_size
        self.global_batch_size, self.micro_batch_size = global_batch_size, micro_batch_size
        self.rank, self.world_size, self.step = rank, world_size, start_step
        self.samples = 0
        self.imbalance: float | None = None
        before = start_step * global_batch_size
        self._shift = 0 if start_sample is None else start_sample - before
        self._end_sample = end_sample
        self._cost = cost if dataset.block_causal else None
        assert self._cost is None or sequence_length, "work is bounded by the longest row"
        self._shape = Shape(
            world_size, self.accumulation_steps, micro_batch_size, sequence_length or 0
        )
        self._pinned_for = device if device is not None and device.type == "cuda" else None
        self._queue: queue.Queue[Window | BaseException] = queue.Queue(prefetch_steps)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._work, args=(start_step,), name="ds_llama-loader", daemon=True
        )
        self._thread.start()

    @classmethod
    def of_run(
        cls,
        resolved: Resolved,
        dataset: Dataset,
        order: Order,
        *,
        rank: int,
        device: torch.device,
        start_step: int = 0,
        start_sample: int | None = None,
        end_sample: int | None = None,
    ) -> Loader:
        """The loader of one rank of a run, by its batch, its model and its rows."""
        return cls(
            dataset,
            order,
            global_batch_size=resolved.global_batch_size,
            micro_batch_size=resolved.micro_batch_size,
            rank=rank,
            world_size=resolved.world_size,
            start_step=start_step,
            start_sample=start_sample,
            end_sample=end_sample,
            vocab_size=resolved.model.vocab_size,
            sequence_length=resolved.run.data.sequence_length,
            # Whose rows are whose hangs on the number of ranks, and so would a micro-batch's bits.
            cost=None if resolved.run.train.reproducible else Cost.of(resolved.model),
            device=device,
        )

    def batches(self, step: int) -> list[Batch]:
        """This rank's micro-batches of a step, made here and now: what the thread prefetches."""
        return self._window(step).batches

    def _window(self, step: int) -> Window:
        """Raises StopIteration after the last sample."""
        first = self._shift + step * self.global_batch_size
        end = first + self.global_batch_size
        if self._end_sample is not None:
            end = min(end, self._end_sample)
        indices = [self.sampler.index(sample) for sample in range(first, end)]
        if not indices:
            raise StopIteration
        bins, imbalance, least, blank = self._assigned(indices)
        batches = [
            self._micro_batch([indices[place] for place in own[self.rank]], least, indices[blank])
            for own in bins
        ]
        return Window(batches, len(indices), imbalance)

    def _assigned(self, indices: Sequence[int]) -> tuple[list[list[Bin]], float | None, int, int]:
        """Whose samples are whose, and the imbalance; how many rows a micro-batch has at least, and
        the place of the sample that stands without labels where there are fewer."""
        if self._cost is None:
            return in_order(len(indices), self._shape), None, self.micro_batch_size, 0
        documents = [self.dataset.lengths(index) for index in indices]
        found = assign(documents, self._cost, self._shape)
        shortest = min(range(len(indices)), key=lambda place: sum(documents[place]))
        return found.bins, found.imbalance, 1, shortest

    def _micro_batch(self, indices: Sequence[int], least: int, blank: int) -> Batch:
        rows = [self.dataset[index] for index in indices]
        if len(rows) < least:
            rows += [_without_labels(self.dataset[blank])] * (least - len(rows))
        batch = collate(rows, self.dataset.block_causal)
        largest = int(batch["input_ids"].max())
        if self.vocab_size is not None and largest >= self.vocab_size:
            raise vocabulary_error(largest, self.vocab_size, where=repr(self.dataset))
        if self._pinned_for is not None:
            return {name: tensor.pin_memory() for name, tensor in batch.items()}
        return batch

    def _work(self, step: int) -> None:
        try:
            if self._pinned_for is not None:  # else every rank's thread would take up device 0
                torch.cuda.set_device(self._pinned_for)
            while not self._stop.is_set():
                self._put(self._window(step))
                step += 1
        except BaseException as error:
            self._put(error)

    def _put(self, item: Window | BaseException) -> None:
        while not self._stop.is_set():
            try:
                return self._queue.put(item, timeout=_POLL_S)
            except queue.Full:
                continue

    def __iter__(self) -> Iterator[list[Batch]]:
        return self

    def __next__(self) -> list[Batch]:
        if self._stop.is_set():
            raise StopIteration
        item = self._take()
        if isinstance(item, BaseException):
            self.close()
            raise item
        self.step += 1
        self.samples, self.imbalance = item.samples, item.imbalance
        return item.batches

    def _take(self) -> Window | BaseException:
        while not self._stop.is_set():
            alive = self._thread.is_alive()  # before looking: it may have put its last item since
            try:
                return self._queue.get(timeout=_POLL_S)
            except queue.Empty:
                if not alive:
                    return _died()
        return StopIteration()

    def close(self) -> None:
        """Stop the thread and wait for it; iteration ends."""
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _without_labels(sample: Sample) -> Sample:
    return sample._replace(labels=np.full_like(sample.input_ids, IGNORED))


def _died() -> RunError:
    return RunError(
        "the thread that reads the data has ended without a word",
        where="data.train",
        remedy="look for what the system says of this process' memory, then resume",
    )
