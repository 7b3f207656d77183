"""How often a step reads a number from the device, which waits for all that was begun there.

On a CPU nothing is waited for, but the reads are the same: `item`, `float` and the like all come to
one operation, `tolist` to none. What is read of a window that is on the host is no such read.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ds_llama.trainer import train as training
from ds_llama.trainer.hooks import Hook
from ds_llama.trainer.job import Job
from ds_llama.trainer.loop import run_steps
from tests.distributed.cells.stability import trained

EVERY_STEP = {"_agree": 1, "_sum_over_ranks": 1}
"""Whether a rank wants to stop, with the tokens of the window; the loss, before the update."""
DEEPSPEEDS = {
    "has_overflow",
    "is_invalid_grad_norm",
}
ON_THE_HOST = "valid_tokens"


class Reads(TorchDispatchMode, Hook):
    """(ours or DeepSpeed's, the function that read) -> how often, of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.now: Counter[tuple[str, str]] = Counter()
        self.steps: list[Counter[tuple[str, str]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.count(sys._getframe(1))
        return func(*args, **(kwargs or {}))

    def count(self, frame: FrameType | None) -> None:
        while frame is not None:
            room = frame.f_globals["__name__"].partition(".")[0]
            if room in ("ds_llama", "deepspeed"):
                if frame.f_code.co_name != ON_THE_HOST:
                    self.now[room, frame.f_code.co_name] += 1
                return
            frame = frame.f_back

    def before_training(self, job: Job) -> None:
        self.now = Counter()

    def after_step(self, job: Job, row: dict[str, Any]) -> None:
        self.steps.append(self.now)
        self.now = Counter()


@contextmanager
def counted() -> Iterator[Reads]:
    reads, tolist = Reads(), torch.Tensor.tolist

    def counting(tensor: torch.Tensor) -> Any:
        reads.count(sys._getframe(1))
        return tolist(tensor)

    def watched(job: Job) -> None:
        job.hooks = [*job.hooks, reads]
        run_steps(job)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "tolist", counting)
        patch.setattr(training, "run_steps", watched)
        with reads:
            yield reads


def reads_no_more(
    folder: Path, *, more: dict[str, int], logged: dict[str, int], **keys: Any
) -> None:
    """`more` in every step, `logged` in every second one, whose row is logged, alone."""
    train = {"steps": 4, "global_batch_size": 4, "micro_batch_size": 2, "log_every_steps": 2}
    with counted() as reads:
        trained(folder, train=train, checkpoint={"export": False}, **keys)
    for number, step in enumerate(reads.steps, start=1):
        ours = {name: count for (room, name), count in step.items() if room == "ds_llama"}
        assert ours == EVERY_STEP | more | (logged if number % 2 == 0 else {}), (number, step)
        theirs = {name for room, name in step if room == "deepspeed"}
        # The first two are also of the trace of modules that stage 3 records and compares.
        assert number <= 2 or theirs <= DEEPSPEEDS, step


def _cells() -> dict[str, tuple[tuple[int, ...], Callable[[Path], None]]]:
    norm = {"grad_norm": 1}
    of = partial(partial, reads_no_more)
    return {
        "0-fp32": ((2,), of(stage=0, more={"_run": 1}, logged={})),  # its guard looks at the norm
        "2-bf16": ((2,), of(stage=2, precision="bf16", more={}, logged=norm)),
        "3-bf16": ((2,), of(stage=3, precision="bf16", more={}, logged=norm)),
    }


CELLS = _cells()
