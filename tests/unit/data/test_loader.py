from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_llama.data import open_data
from ds_llama.data.balance import Cost
from ds_llama.data.collate import Batch
from ds_llama.data.loader import Loader
from ds_llama.data.sample import Sample
from ds_llama.data.sampler import Sampler
from ds_llama.errors import ConfigError, DataError, RunError
from tests.unit.data.conftest import write_shard


class Numbers:
    """Row i is [i, i, i]; one index can be made to fail."""

    block_causal = False

    def __init__(self, length: int, broken: int | None = None) -> None:
        self.length, self.broken = length, broken

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if index == self.broken:
            raise OSError("the disk is gone")
        ids = np.full(sum(self.lengths(index)), index, dtype=np.int64)
        return Sample(ids, ids, self.lengths(index))

    def lengths(self, index: int) -> tuple[int, ...]:
        return (3,)


class Documents(Numbers):
    """Row i is a document of 2 to 32 times i."""

    block_causal = True

    def lengths(self, index: int) -> tuple[int, ...]:
        return (2 + index * index % 31,)


def learnt(batches: list[Batch]) -> list[int]:
    """The samples that have labels."""
    return [int(row[0]) for batch in batches for row in batch["labels"] if row[0] != -100]


def firsts(batches: list[Batch]) -> list[int]:
    return [int(i) for batch in batches for i in batch["input_ids"][:, 0]]


@pytest.mark.parametrize(("world", "micro"), [(1, 8), (1, 2), (2, 4), (2, 1), (4, 2)])
def test_a_global_batch_is_the_same_at_any_world_size(world: int, micro: int) -> None:
    dataset, sampler = Numbers(50), Sampler(50, seed=1)
    loaders = [
        Loader(
            dataset,
            sampler,
            global_batch_size=8,
            micro_batch_size=micro,
            rank=rank,
            world_size=world,
            start_step=4,
        )
        for rank in range(world)
    ]
    for step in range(4, 9):
        steps = [next(loader) for loader in loaders]
        assert {len(batches) for batches in steps} == {8 // (micro * world)}
        drawn = sorted(i for batches in steps for i in firsts(batches))
        assert drawn == sorted(sampler.index(k) for k in range(8 * step, 8 * step + 8))
        assert loaders[0].step == step + 1
    for loader in loaders:
        loader.close()


def test_batches_are_int64_with_labels_of_their_own(tmp_path: Path) -> None:
    write_shard(tmp_path / "x", 100)
    dataset, sampler = open_data(tmp_path / "x", 4, seed=0)
    with Loader(
        dataset, sampler, global_batch_size=2, micro_batch_size=2, rank=0, world_size=1
    ) as loader:
        [batch] = next(loader)
    assert batch["input_ids"].shape == (2, 4)
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
    assert torch.equal(batch["input_ids"], batch["labels"])
    assert batch["input_ids"].data_ptr() != batch["labels"].data_ptr()


def test_content_depends_on_seed_and_step_alone() -> None:
    def loader(start: int, seed: int = 1) -> Loader:
        sampler = Sampler(30, seed)
        sizes = {"global_batch_size": 4, "micro_batch_size": 2}
        return Loader(Numbers(30), sampler, **sizes, rank=0, world_size=1, start_step=start)

    with loader(0) as first, loader(3) as resumed, loader(0, seed=2) as other:
        steps = [firsts(next(first)) for _ in range(6)]
        assert [firsts(next(resumed)) for _ in range(3)] == steps[3:]
        assert firsts(resumed.batches(1)) == steps[1]
        assert [firsts(next(other)) for _ in range(6)] != steps


def test_an_error_in_the_thread_is_raised_by_next() -> None:
    loader = Loader(
        Numbers(4, broken=2),
        Sampler(4, seed=0),
        global_batch_size=4,
        micro_batch_size=4,
        rank=0,
        world_size=1,
    )
    with pytest.raises(OSError, match="the disk is gone"):
        next(loader)
    with pytest.raises(StopIteration):
        next(loader)


def test_an_id_beyond_the_vocabulary_names_both_numbers(tmp_path: Path) -> None:
    write_shard(tmp_path / "x", 100)
    dataset, sampler = open_data(tmp_path / "x", 100, seed=0)
    sizes = {"global_batch_size": 1, "micro_batch_size": 1}
    loader = Loader(dataset, sampler, **sizes, rank=0, world_size=1, vocab_size=64)
    with pytest.raises(DataError) as caught:
        next(loader)
    assert caught.value.what == "the data holds token id 99, the model's vocabulary has 64 entries"
    assert str(tmp_path / "x") in caught.value.where
    assert "at least 100" in caught.value.remedy


@pytest.mark.parametrize(("batch", "micro", "world"), [(6, 4, 1), (4, 4, 2), (0, 1, 1)])
def test_a_batch_that_cannot_be_cut_is_refused(batch: int, micro: int, world: int) -> None:
    with pytest.raises(ConfigError) as caught:
        Loader(
            Numbers(9),
            Sampler(9, 0),
            global_batch_size=batch,
            micro_batch_size=micro,
            rank=0,
            world_size=world,
        )
    assert f"a global batch of {batch} cannot be cut into micro-batches of {micro}" in str(
        caught.value
    )
    assert f"multiple of {micro * world}" in caught.value.remedy


def test_close_ends_the_thread_and_wakes_a_waiting_consumer() -> None:
    release = threading.Event()

    class Slow(Numbers):
        def __getitem__(self, index: int) -> Sample:
            release.wait(10)
            return super().__getitem__(index)

    sizes = {"global_batch_size": 1, "micro_batch_size": 1}
    loader = Loader(Slow(9), Sampler(9, 0), **sizes, rank=0, world_size=1)
    ended: list[list[list[Batch]]] = []
    consumer = threading.Thread(target=lambda: ended.append(list(loader)))
    consumer.start()
    time.sleep(0.05)
    release.set()
    loader.close()
    consumer.join(5)
    assert ended
    assert not consumer.is_alive()
    assert not [t for t in threading.enumerate() if t.name == "ds_llama-loader"]


def test_prefetching_stops_at_its_limit() -> None:
    seen: list[int] = []

    class Counting(Numbers):
        def __getitem__(self, index: int) -> Sample:
            seen.append(index)
            return super().__getitem__(index)

    sizes = {"global_batch_size": 1, "micro_batch_size": 1, "prefetch_steps": 3}
    with Loader(Counting(99), Sampler(99, 0), **sizes, rank=0, world_size=1):
        time.sleep(0.3)
        assert len(seen) == 4  # three in the queue, one in the hand


sizes = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4))


@settings(max_examples=50, deadline=None)
@given(cut=sizes, samples=st.integers(1, 60), seed=st.integers(0, 99), vary=st.booleans())
def test_every_sample_of_an_epoch_is_learnt_once_and_all_ranks_take_equal_steps(
    cut: tuple[int, int, int], samples: int, seed: int, vary: bool
) -> None:
    """Whatever is left for the last global batch, at any world size, micro-batch, accumulation."""
    world, micro, accumulation = cut
    batch = world * micro * accumulation
    dataset = Documents(samples) if vary else Numbers(samples)
    order = Sampler(samples, seed)
    steps: list[list[list[Batch]]] = []
    for rank in range(world):
        with Loader(
            dataset,
            order,
            global_batch_size=batch,
            micro_batch_size=micro,
            rank=rank,
            world_size=world,
            end_sample=samples,
            sequence_length=32,
            cost=Cost(100, 1),
        ) as loader:
            steps.append([])
            for found in loader:
                steps[-1].append(found)
                begin = batch * (len(steps[-1]) - 1)
                assert loader.samples == min(batch, samples - begin)
                assert (loader.imbalance is not None) is vary
    assert {len(own) for own in steps} == {-(-samples // batch)}
    for number, window in enumerate(zip(*steps, strict=True)):
        assert {len(own) for own in window} == {accumulation}
        whole = range(number * batch, min(samples, (number + 1) * batch))
        together = [sample for own in window for sample in learnt(own)]
        assert sorted(together) == sorted(order.index(k) for k in whole)
        for micro_batch in (each for own in window for each in own):
            rows, tokens = micro_batch["input_ids"].shape
            assert rows == micro or (vary and 0 < rows * tokens <= micro * 32)


@settings(max_examples=30, deadline=None)
@given(first=sizes, second=sizes, steps=st.integers(0, 5), seed=st.integers(0, 99))
def test_a_run_goes_on_from_one_integer_at_any_split(
    first: tuple[int, int, int], second: tuple[int, int, int], steps: int, seed: int
) -> None:
    """The number of samples seen says the rest: of an endless order, with another batch too."""
    order, seen = Sampler(23, seed), steps * first[0] * first[1] * first[2]
    world, micro, accumulation = second
    batch = world * micro * accumulation
    drawn = []
    for rank in range(world):
        with Loader(
            Numbers(23),
            order,
            global_batch_size=batch,
            micro_batch_size=micro,
            rank=rank,
            world_size=world,
            start_step=steps,
            start_sample=seen,
        ) as loader:
            drawn += learnt(next(loader)) + learnt(next(loader))
    assert sorted(drawn) == sorted(order.index(seen + k) for k in range(2 * batch))


def test_a_thread_that_ends_without_a_word_is_an_error() -> None:
    class Killed(Loader):
        def _work(self, step: int) -> None:
            pass

    sizes = {"global_batch_size": 1, "micro_batch_size": 1}
    loader = Killed(Numbers(9), Sampler(9, 0), **sizes, rank=0, world_size=1)
    with pytest.raises(RunError) as caught:
        next(loader)
    assert caught.value.what == "the thread that reads the data has ended without a word"
    assert caught.value.where == "data.train"
    assert "memory" in caught.value.remedy
