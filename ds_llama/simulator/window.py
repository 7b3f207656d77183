"""Windows of many micro-batches, simulated by three of them.

    first      finds the gradients of the last window gone
    second     adds to what the first left; every one but the last does the same again
    last       is reduced, and followed by the update

So a window of A micro-batches moves and computes what one of three does, and A - 3 times what its
second does; its peaks are those of the three. A test compares both with every micro-batch run.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from ds_llama.config.resolve import Resolved
from ds_llama.measure.flops import Flops
from ds_llama.measure.traffic import Moved, Traffic
from ds_llama.zero.step import Batch

RUN = 3
_STEADY = 3  # stage 3 prefetches from the third micro-batch on (partitioned_param_coordinator.py)


def shortened(resolved: Resolved) -> Resolved:
    """The run with windows of at most three micro-batches. All that depends on there being
    several, such as the dtype that gradients are summed in, is resolved already."""
    if resolved.accumulation_steps <= RUN:
        return resolved
    size = resolved.global_batch_size // resolved.accumulation_steps * RUN
    config = copy.deepcopy(resolved.deepspeed)
    config.update(train_batch_size=size, gradient_accumulation_steps=RUN)
    return replace(resolved, deepspeed=config, accumulation_steps=RUN, global_batch_size=size)


def steady_steps(resolved: Resolved) -> int:
    """How many steps to simulate, so that in the last every micro-batch is as all later ones."""
    alone = resolved.stage == 3 and resolved.accumulation_steps == 1
    return _STEADY if alone else 2


def batches(resolved: Resolved) -> list[Batch]:
    """The micro-batches of one step, without their values, as the loader gives them."""
    shape = (resolved.micro_batch_size, resolved.run.data.sequence_length)
    return [
        {name: torch.zeros(shape, dtype=torch.int64) for name in ("input_ids", "labels")}
        for _ in range(resolved.accumulation_steps)
    ]


class Counted:
    """What a step moves and computes, read after each of its backward passes."""

    def __init__(self, traffic: Traffic, flops: Flops) -> None:
        self._traffic, self._flops = traffic, flops
        self.begin()

    def begin(self) -> None:
        """A step begins."""
        self._traffic.reset()
        self._flops.reset()
        self._after: list[tuple[Moved, int, int]] = []

    def ended(self, phase: str) -> None:
        """A phase has ended."""
        if phase == "backward":
            self._after.append(self._read())

    def of(self, micro_batches: int) -> tuple[Moved, int, int]:
        """Moved, FLOPs of the model, and FLOPs computed, of a window of so many micro-batches."""
        moved, model, hardware = self._read()
        more = micro_batches - len(self._after)
        if more > 0:
            first, second = self._after[:2]
            moved = moved.plus(first[0], second[0], more)
            model += more * (second[1] - first[1])
            hardware += more * (second[2] - first[2])
        return moved, model, hardware

    def _read(self) -> tuple[Moved, int, int]:
        return self._traffic.read(), self._flops.model, self._flops.hardware
