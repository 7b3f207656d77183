"""A save in the background is of one step, whatever is trained meanwhile; a failed one of none."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ds_llama.checkpoint import shards
from ds_llama.checkpoint.background import Background
from ds_llama.checkpoint.resume import resume
from ds_llama.commit import listing
from ds_llama.commit.verify import verify
from ds_llama.zero import world
from ds_llama.zero.step import take_step
from tests.distributed.cells.checkpoint import MICRO, commit, engine_for, raised, train
from tests.distributed.runs import global_batch, split


class NotCopied:
    """Sabotage: a snapshot that is the engine's own tensors."""

    def __init__(self, content: Any) -> None:
        self._content = content

    def restore(self) -> Any:
        return self._content


@contextmanager
def writers_held_back() -> Iterator[None]:
    """No file is begun before the block is left."""
    go, save_hashed = threading.Event(), shards.save_hashed

    def late(*args: Any) -> Any:
        assert go.wait(60)
        return save_hashed(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "save_hashed", late)
        try:
            yield
        finally:
            go.set()


def begin(saves: Background, engine: Any, folder: Path, step: int) -> Path:
    """Start a save; its position changes afterwards, as a trainer's does."""
    position = {"step": step, "tokens_seen": 10 * step, "samples_seen": step}
    root = folder / "checkpoints"
    saves.save(engine, root, step, position, engine.ds_llama.resolved)
    position["tokens_seen"] = -1
    return root / f"step-{step:08d}"


def training_goes_on(folder: Path, **keys: Any) -> None:
    """Equal to a save in the foreground, and resumed bit for bit; the twin has later weights."""
    engine, saves = engine_for(folder, **keys), Background()
    train(engine, 1, 2)
    front = commit(engine, folder / "front", 2)
    with writers_held_back():
        step = begin(saves, engine, folder / "back", 2)
        expected = train(engine, 3, 4)
        assert listing.checkpoints(step.parent) == []
    saves.finish()
    assert verify(step) == []
    assert (step / "state.json").read_bytes() == (front / "state.json").read_bytes()
    require_equal_files(front, step)

    fresh = engine_for(folder, seed=1, **keys)
    assert resume(fresh, step, fresh.ds_llama.resolved)["tokens_seen"] == 20
    assert train(fresh, 3, 4) == expected

    with pytest.MonkeyPatch.context() as patch, writers_held_back():
        patch.setattr(shards, "Snapshot", NotCopied)
        step = begin(saves, engine, folder / "twin", 4)
        train(engine, 5, 5)
    saves.finish()
    assert verify(step) == []  # its files are whole, and of mixed steps
    error = raised(lambda: resume(fresh, step, fresh.ds_llama.resolved))
    assert "(master)" in error.what, error


def require_equal_files(front: Path, back: Path) -> None:
    """The same tensors in the same files, and the same of everything else."""
    names = sorted(path.name for path in front.glob("*.pt"))
    assert names == sorted(path.name for path in back.glob("*.pt"))
    for name in names[world.rank() :: world.world_size()]:
        one, two = (torch.load(path / name, weights_only=False) for path in (front, back))
        assert_equal(one, two, name)


def assert_equal(one: Any, two: Any, where: str) -> None:
    assert type(one) is type(two), where
    if isinstance(one, torch.Tensor):
        assert one.dtype == two.dtype, where
        assert torch.equal(one, two), where
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_equal(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two), where
        for index, pair in enumerate(zip(one, two, strict=True)):
            assert_equal(*pair, f"{where}.{index}")
    elif hasattr(one, "__dict__") and not isinstance(one, type):
        assert_equal(vars(one), vars(two), where)
    else:
        assert one == two, where


@contextmanager
def no_space_on(rank: int) -> Iterator[None]:
    def fail(content: Any, path: Path, staged: Path) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with pytest.MonkeyPatch.context() as patch:
        if world.rank() == rank:
            patch.setattr(shards, "save_hashed", fail)
        yield


def a_rank_that_cannot_write_fails_all(folder: Path) -> None:
    """At the next save, or at the end; what was committed stays, and the next one is written."""
    engine, saves = engine_for(folder, stage=2), Background()
    last = world.world_size() - 1
    train(engine, 1, 1)
    first = commit(engine, folder, 1)
    for meeting in (saves.finish, lambda: begin(saves, engine, folder, 3)):
        with no_space_on(last):
            begin(saves, engine, folder, 2)
            train(engine, 2, 2)  # all ranks go on
            while world.rank() == last and not saves.failed:
                time.sleep(0.01)
            window = split(global_batch(3, MICRO * world.world_size()), MICRO, world.rank(), 2)
            assert take_step(engine, window, stop=saves.failed) is None  # and stop together
            error = raised(meeting)
        assert f"saving step-00000002 failed on rank {last}: No space left" in error.what, error
        assert f"rank_{last}" in error.where, error
        torch.distributed.barrier()
        assert sorted(p.name for p in first.parent.iterdir()) == [".run-id", "latest", first.name]
        assert verify(first) == []
        torch.distributed.barrier()
    step = begin(saves, engine, folder, 3)
    saves.finish()
    assert verify(step) == []
    assert [c.step for c in listing.checkpoints(first.parent)] == [1, 3]


CELLS = {
    f"goes_on-{stage}-{offload}": (
        (2,),
        partial(training_goes_on, stage=stage, precision="bf16", offload=offload),
    )
    for stage, offload in ((1, "none"), (3, "optimizer"))
} | {"one_rank_fails": ((2,), a_rank_that_cannot_write_fails_all)}
