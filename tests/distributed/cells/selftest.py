"""What a selftest does with cells that go wrong, and with engines that it is done with."""

from __future__ import annotations

import gc
import weakref
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from deepspeed.accelerator import get_accelerator

from ds_llama.errors import RunError
from ds_llama.selftest import rank
from ds_llama.selftest.cells import Cell
from ds_llama.selftest.outcome import ERROR, NOT_RUN, OK, Outcome, merge
from ds_llama.selftest.sabotage import Sabotage
from ds_llama.trainer.build import construct
from ds_llama.zero import engine as engines
from ds_llama.zero import world
from ds_llama.zero.register import register
from ds_llama.zero.step import take_step
from tests.distributed.runs import global_batch, make_run

GOOD = Cell("fp32", 1)


def an_error_is_a_row_and_the_next_cell_runs(folder: Path) -> None:
    refused = rank.attempt(Cell("bf16", 0), folder / "refused", None)
    outcome = merge(rank.everyones(1000, "refused", refused))
    assert outcome.verdict == ERROR
    assert outcome.reason is not None
    assert "stage 0" in outcome.reason
    assert rank.attempt(GOOD, folder / "good", None).verdict == OK


def an_unknown_error_says_where(folder: Path) -> None:
    def fail(engine: Any) -> None:
        raise ValueError("of  the\ntest")

    outcome = rank.attempt(GOOD, folder, Sabotage("", engine=fail))
    assert outcome.verdict == ERROR
    assert outcome.reason is not None
    assert outcome.reason.startswith("ValueError: of the test (selftest.py:")


def a_rank_that_stays_behind_ends_the_launch(folder: Path) -> None:
    if world.rank() == 0:
        return
    with pytest.raises(RunError, match=r"rank 1 came out of a cell \(why\), and another did not"):
        rank.everyones(2000, "cell", Outcome(ERROR, reason="why"), timedelta(seconds=0.2))


def what_a_device_cannot_do_is_said(folder: Path) -> None:
    accelerator = get_accelerator()
    supported = accelerator.is_fp16_supported, accelerator.is_bf16_supported
    accelerator.is_fp16_supported = accelerator.is_bf16_supported = lambda: False
    try:
        half, brain = (rank.attempt(Cell(p, 1), folder, None) for p in ("fp16", "bf16"))
    finally:
        accelerator.is_fp16_supported, accelerator.is_bf16_supported = supported
    assert (half.verdict, brain.verdict) == (NOT_RUN, NOT_RUN)
    assert half.reason == "this device has no fast fp16, so DeepSpeed refuses it"
    assert brain.reason == "this device has no bf16"


def _lives(folder: Path, *, ours: bool) -> bool:
    """Whether a ZeRO-3 engine is still there after it was destroyed."""
    run = make_run(folder, stage=3, world=world.world_size())
    engine = register(construct(run), run)
    take_step(engine, [global_batch(0, 2)])
    take_step(engine, [global_batch(1, 2)])
    there = weakref.ref(engine)
    engines.destroy(engine) if ours else engine.destroy()
    del engine
    gc.collect()
    return there() is not None


def a_destroyed_engine_is_gone(folder: Path) -> None:
    assert not _lives(folder, ours=True)


def deepspeeds_destroy_keeps_it(folder: Path) -> None:
    assert _lives(folder, ours=False)


CELLS = {
    "error-is-a-row": ((2,), an_error_is_a_row_and_the_next_cell_runs),
    "error-says-where": ((1,), an_unknown_error_says_where),
    "left-behind": ((2,), a_rank_that_stays_behind_ends_the_launch),
    "cannot-run": ((1,), what_a_device_cannot_do_is_said),
    "destroyed": ((1, 2), a_destroyed_engine_is_gone),
    "twin-destroyed": ((1,), deepspeeds_destroy_keeps_it),
}
