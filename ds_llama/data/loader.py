"""Batches for one rank, prefetched in a thread. Their content is a function of (seed, step)."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from types import TracebackType

from ds_llama.data.collate import Batch, collate
from ds_llama.data.corpora import Order
from ds_llama.data.sample import Dataset
from ds_llama.data.shards import vocabulary_error
from ds_llama.errors import ConfigError

_POLL_S = 0.1


class Loader:
    """Endless steps for one rank; a step is a list of micro-batches, one per accumulation.

    Each micro-batch is what `collate` makes of as many samples. Step s, from 0, is made of the
    samples s*G ... (s+1)*G-1 of the order whatever the world size; G is `global_batch_size`. A run
    that goes on with another G says how many samples it has seen: `start_sample`, the first of
    `start_step`.

        samples   0 1 | 2 3 | 4 5 | 6 7        G = 8, micro 2, world 2, accumulation 2
        rank      0     1     0     1
        micro     0     0     1     1

    What goes wrong in the thread is raised by `next`. Call `close`, or use it as a context manager.
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
        vocab_size: int | None = None,
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
        before = start_step * global_batch_size
        self._shift = 0 if start_sample is None else start_sample - before
        self._queue: queue.Queue[list[Batch] | BaseException] = queue.Queue(prefetch_steps)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._work, args=(start_step,), name="ds_llama-loader", daemon=True
        )
        self._thread.start()

    def batches(self, step: int) -> list[Batch]:
        """This rank's micro-batches of a step, made here and now: what the thread prefetches."""
        micro, stride = self.micro_batch_size, self.micro_batch_size * self.world_size
        first = self._shift + step * self.global_batch_size + self.rank * micro
        starts = [first + a * stride for a in range(self.accumulation_steps)]
        return [self._micro_batch(range(s, s + micro)) for s in starts]

    def _micro_batch(self, samples: range) -> Batch:
        rows = [self.dataset[self.sampler.index(sample)] for sample in samples]
        batch = collate(rows, self.dataset.block_causal)
        largest = int(batch["input_ids"].max())
        if self.vocab_size is not None and largest >= self.vocab_size:
            raise vocabulary_error(largest, self.vocab_size, where=repr(self.dataset))
        return batch

    def _work(self, step: int) -> None:
        try:
            while not self._stop.is_set():
                self._put(self.batches(step))
                step += 1
        except BaseException as error:
            self._put(error)

    def _put(self, item: list[Batch] | BaseException) -> None:
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
        return item

    def _take(self) -> list[Batch] | BaseException:
        while not self._stop.is_set():
            try:
                return self._queue.get(timeout=_POLL_S)
            except queue.Empty:
                continue
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
