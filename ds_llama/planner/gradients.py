"""Gradients between the backward pass that makes them and the update that uses them.

    stage 0   whole, until the update; all-reduced in buckets of 5e8 elements at the boundary
    stage 1   whole until the boundary, then through the bucket into this rank's partition
    stage 2   through the bucket as they come; this rank's partition is kept
    stage 3   the same, into a flat buffer that is there from the start
    bf16 that accumulates in fp32 at stage 1 is another class, with all gradients in fp32 too

Each class below, and in planner/flat.py and planner/sharded.py, plays what one of DeepSpeed's does.
A weight's gradient, in the training dtype, is in the ledger already when `ready` is told of it.
"""

from __future__ import annotations

from collections.abc import Iterable

from ds_llama.planner.ledger import Ledger
from ds_llama.planner.settings import Settings, Weight, padded

_GRADIENTS, _BUCKETS, _OTHER = "gradients", "buckets", "other"
_ALLREDUCE = 500_000_000  # elements, runtime/engine.py MEMORY_OPT_ALLREDUCE_SIZE


class Reducer:
    """Stage 0, and what the others share."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self.settings, self.ledger = settings, ledger
        self.first = self.boundary = True

    def begin(self, *, first: bool, boundary: bool) -> None:
        """A micro-batch begins; `first` and `boundary` say where in its window."""
        self.first, self.boundary = first, boundary

    def ready(self, weight: Weight) -> None:
        """The gradient of `weight` has been made; from the second on it is added to the first."""
        if not self.first:
            self._drop(weight)

    def end(self) -> None:
        """The backward pass is over."""
        if self.boundary and self.settings.resolved.world_size > 0:
            for bucket in _buckets([weight.elements for weight in self.settings.weights]):
                if len(bucket) > 1:
                    self.ledger.peek(_BUCKETS, self.settings.width * sum(bucket))
                if self.settings.communication_width != self.settings.width:
                    self.ledger.peek(_BUCKETS, self.settings.communication_width * sum(bucket))

    def first_update(self) -> None:
        """What the first update holds for a moment and no later one does."""

    def clear(self) -> None:
        """After the update."""
        self.ledger.free(_GRADIENTS, self._all)

    @property
    def _all(self) -> int:
        return self.settings.width * sum(weight.elements for weight in self.settings.weights)

    def _drop(self, weight: Weight) -> None:
        self.ledger.free(_GRADIENTS, self.settings.width * weight.elements)


class Bf16Reducer(Reducer):
    """runtime/bf16_optimizer.py: bf16 gradients stay for good, zeroed and not freed (:575); their
    fp32 sums do too, held since initialisation (:191)."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        super().__init__(settings, ledger)
        self.kept = False

    def ready(self, weight: Weight) -> None:
        if self.kept:
            self._drop(weight)

    def end(self) -> None:
        self.kept = True
        self.ledger.peek(_OTHER, 4 * self.settings.largest)  # added up one by one, in fp32
        settings = self.settings
        if not self.boundary:
            return
        if settings.communication_width != 4:
            elements = sum(weight.elements for weight in settings.weights)
            self.ledger.peek(_BUCKETS, settings.communication_width * elements)
        groups = [sum(weight.elements for weight in group) for group in settings.groups]
        for bucket in _buckets(groups):  # sums of several groups are joined, those of one are not
            if len(bucket) > 1:
                self.ledger.peek(_BUCKETS, 4 * sum(bucket))

    def clear(self) -> None:
        """Gone with the step: `engine.step` sets them to None (runtime/engine.py)."""
        self.ledger.free(_GRADIENTS, self._all)
        self.kept = False


def in_partition(group: Iterable[Weight], ranks: int) -> list[Weight]:
    """The weights that rank 0 has a part of, stages 1 and 2 (stage_1_and_2.py:2579)."""
    group = list(group)
    share = padded(sum(weight.elements for weight in group), 2 * ranks) // ranks
    found, start = [], 0
    for weight in group:
        if start >= share:
            break
        found.append(weight)
        start += weight.elements
    return found


def shares(settings: Settings) -> list[int]:
    """Elements of one rank's partition of each group; the group is padded to twice the ranks."""
    totals = [sum(weight.elements for weight in group) for group in settings.groups]
    return [padded(total, 2 * settings.ranks) // settings.ranks for total in totals]


def is_bf16_optimizer(settings: Settings) -> bool:
    """bf16 with fp32 sums at stage 1, not offloaded (runtime/engine.py:2302)."""
    return (
        settings.stage == 1
        and settings.resolved.dtype == "bfloat16"
        and settings.accumulation_width == 4
        and not settings.offloaded
    )


def _buckets(sizes: Iterable[int]) -> list[list[int]]:
    """As `allreduce_no_retain` fills them (runtime/engine.py): what goes over the limit is in."""
    found: list[list[int]] = [[]]
    for size in sizes:
        found[-1].append(size)
        if sum(found[-1]) > _ALLREDUCE:
            found.append([])
    return found if found[-1] else found[:-1]
