from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ds_llama.data import open_data
from ds_llama.data.collate import Batch
from ds_llama.data.loader import Loader
from ds_llama.data.sample import Sample
from ds_llama.data.sampler import Sampler
from ds_llama.errors import ConfigError, DataError
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
        ids = np.full(3, index, dtype=np.int64)
        return Sample(ids, ids, (3,))


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
