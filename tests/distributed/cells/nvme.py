"""Checkpoints of what is on NVMe, and of frozen parameters, which have no master anywhere."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ds_llama.checkpoint import checksums
from ds_llama.checkpoint import resume as resuming
from ds_llama.checkpoint.restore import restore
from ds_llama.checkpoint.resume import resume
from ds_llama.weights.tensorfile import Reader
from ds_llama.zero import swap, world
from ds_llama.zero.pieces import partitions
from tests.campaigns.resume_anywhere import LITTLE, swapping_little
from tests.distributed.cells.checkpoint import commit, engine_for, raised, train

EMBEDDING = "model.embed_tokens.weight"


def on_nvme(folder: Path, sub_group_size: int, **optimizer: Any) -> dict[str, Any]:
    """Keys of a run whose optimizer and weights are on NVMe, but for the smallest."""
    place = {"device": "nvme", "nvme_path": str(folder)}
    zero = {
        "stage": 3,
        "offload_optimizer": {**place, **optimizer},
        "offload_param": {**place, "max_in_cpu": 0},
        "sub_group_size": sub_group_size,
    }
    return {"stage": 3, "deepspeed": {"zero_optimization": zero, **LITTLE}}


@swapping_little()
def goes_on(folder: Path) -> None:
    """Bit for bit, in a fresh engine and in one that has trained.

    Several parameters a partition. Sabotage: one element on NVMe changed after loading.
    """
    folder.mkdir(parents=True, exist_ok=True)
    keys = on_nvme(folder, 3_000)
    engine = engine_for(folder, **keys)
    train(engine, 1, 2)
    step = commit(engine, folder, 2)
    kept, expected = checksums.compute(engine), train(engine, 3, 4)
    fresh = engine_for(folder, seed=1, **keys)
    for _ in range(2):
        assert checksums.compute(fresh)["parameters"] != kept["parameters"]
        resume(fresh, step, fresh.ds_llama.resolved)
        assert checksums.compute(fresh) == kept
        assert train(fresh, 3, 4) == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resuming, "restore", _load_wrong)
        error = raised(lambda: resume(fresh, step, fresh.ds_llama.resolved))
    assert "(master)" in error.what, error
    if world.rank() == 0:
        with Reader(step / "swapped_rank_00.safetensors") as file:
            assert {"0.master", "0.exp_avg", "0.exp_avg_sq", "1.master"} <= file.specs.keys()


def _load_wrong(engine: Any, reader: Any) -> None:
    restore(engine, reader)
    index = next(i for i, _ in enumerate(partitions(engine)) if swap.is_away(engine, i))
    if world.rank() == world.world_size() - 1:
        with swap.resident(engine, index, changed=True):
            partitions(engine)[index].data[3] += 1


@swapping_little()
def frozen_goes_on(folder: Path) -> None:
    """A frozen matrix, which no world divides, at stages 2 and 3 and on NVMe, and between them.

    A parameter a partition: DeepSpeed misreads gradients that begin elsewhere than at a multiple of
    512 bytes there, since direct I/O refuses it and nothing looks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pipelined = {"pipeline_read": True, "pipeline_write": True, "buffer_count": 16}
    swapped = on_nvme(folder, 1, **pipelined)
    layouts = {"2": {"stage": 2}, "3": {"stage": 3}, "nvme": swapped}
    for source, targets in (("2", "3 nvme"), ("3", "3 2"), ("nvme", "nvme 2")):
        engine = engine_for(folder / source, frozen=(EMBEDDING,), hidden_size=65, **layouts[source])
        train(engine, 1, 2)
        step = commit(engine, folder / source, 2)
        kept, expected = checksums.compute(engine)["parameters"], train(engine, 3, 4)
        assert kept[EMBEDDING].keys() == {"weight"}
        for target in targets.split():
            fresh = engine_for(
                folder / "fresh", seed=1, frozen=(EMBEDDING,), hidden_size=65, **layouts[target]
            )
            assert checksums.compute(fresh)["parameters"][EMBEDDING] != kept[EMBEDDING]
            resume(fresh, step, fresh.ds_llama.resolved)
            assert checksums.compute(fresh)["parameters"] == kept, (source, target)
            tolerance = 0 if target == source else 1e-5
            np.testing.assert_allclose(train(fresh, 3, 4), expected, rtol=tolerance)


@swapping_little()
def unaligned_gradients_are_read(folder: Path) -> None:
    """Slices of odd sizes in one partition train as they do in memory; left to DeepSpeed they do
    not."""
    folder.mkdir(parents=True, exist_ok=True)
    expected = train(engine_for(folder, stage=3, offload="all", hidden_size=65), 1, 4)
    swapped = on_nvme(folder, 1_000_000)
    found = train(engine_for(folder, hidden_size=65, **swapped), 1, 4)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(swap, "keep_unaligned", lambda engine: None)
        misread = train(engine_for(folder, hidden_size=65, **swapped), 1, 4)
    assert np.allclose(misread, expected, rtol=1e-5) == reads_anywhere(folder)


def reads_anywhere(folder: Path) -> bool:
    """Whether the kernel reads a file of this folder directly into memory at any multiple of 4."""
    path = folder / f"probe-{world.rank()}"
    path.write_bytes(bytes(8192))
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, 8192) as memory, memoryview(memory)[4:4100] as odd:
            return os.preadv(descriptor, [odd], 0) == 4096
    except OSError:
        return False
    finally:
        os.close(descriptor)


CELLS: dict[str, tuple[tuple[int, ...], Callable[[Path], None]]] = {
    "goes_on": ((2,), goes_on),
    "frozen": ((2,), frozen_goes_on),
    "unaligned": ((2,), unaligned_gradients_are_read),
}
