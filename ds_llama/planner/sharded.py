"""Gradients at stage 3, runtime/zero/stage3.py: into the flat buffer of this rank's slices (:791).

What is offloaded is turned into the masters' dtype on its way out. On its way to NVMe it waits for
the others of its bucket; what is too small for a disk, and what is no multiple of its blocks, waits
in memory until the update (swap_tensor/optimizer_utils.py:240, :448).
"""

from __future__ import annotations

from ds_llama.planner.gradients import Reducer
from ds_llama.planner.ledger import Ledger, Stretch
from ds_llama.planner.settings import Settings, Weight, padded
from ds_llama.planner.subgroups import sub_groups

_GRADIENTS, _BUCKETS, _OTHER, _OPTIMIZER = "gradients", "buckets", "other", "optimizer"
_NORM_WIDTH = 8  # norms are taken in fp64 (runtime/zero/utils.py:59), of a copy
_NORM_PART = 250_000_000  # elements that the norm copies at a time, stage3.py:1960


class ShardedReducer(Reducer):
    """Plays bucket by bucket what becomes of gradients."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        super().__init__(settings, ledger)
        self.pending: list[Weight] = []
        self.elements = self.alone = 0
        self.recorded: dict[tuple[int, ...], Stretch] = {}
        self.order = {weight.name: place for place, weight in enumerate(settings.weights)}
        self.groups = sub_groups(settings)
        self.waiting = [0] * len(self.groups)  # bytes, until the update
        every = enumerate(self.groups)
        self.group_of = {weight.name: index for index, group in every for weight in group.weights}

    def ready(self, weight: Weight) -> None:
        settings = self.settings
        if self.elements and self.elements + weight.elements > settings.bucket:
            self._reduce()
        size = settings.width * weight.elements
        if settings.contiguous and self.elements + weight.elements <= settings.bucket:
            self.ledger.free(_GRADIENTS, size)  # copied into the bucket
        else:
            self.alone += size
        self.pending.append(weight)
        self.elements += weight.elements

    def end(self) -> None:
        self._reduce()

    def first_update(self) -> None:
        """Sub-group by sub-group (:2873), swapped moments are made and go to NVMe; so do what waits
        of the sub-group's gradients."""
        master = self.settings.master_width
        for group, waiting in zip(self.groups, self.waiting, strict=True):
            if group.place == "nvme":
                moments = self.settings.moment_width * group.elements
                with self.ledger.held(_OPTIMIZER, moments, host=True):
                    self.ledger.peek(_OTHER, 2 * master * group.joined, host=True)
            self.ledger.free(_GRADIENTS, waiting)
        self.ledger.hold(_GRADIENTS, sum(self.waiting))

    def clear(self) -> None:
        self.ledger.free(_GRADIENTS, sum(self.waiting))
        self.waiting = [0] * len(self.groups)

    def _reduce(self) -> None:
        if not self.pending:
            return
        if self.settings.resolved.offload_optimizer == "nvme":  # where some of it waits
            self._reduced()
        else:
            self.ledger.replay(self._recorded())
        self.pending, self.elements, self.alone = [], 0, 0

    def _recorded(self) -> Stretch:
        """What a bucket of weights of these sizes does: there are few kinds, and many buckets."""
        key = (self.boundary, self.alone, *[weight.elements for weight in self.pending])
        if key not in self.recorded:
            ledger, self.ledger = self.ledger, Ledger()
            self._reduced()
            self.recorded[key] = self.ledger.stretch()
            self.ledger = ledger
        return self.recorded[key]

    def _reduced(self) -> None:
        with self.ledger.held(_BUCKETS, self._scattered()):
            if self.settings.offloaded:
                self._offload()
        self.ledger.free(_GRADIENTS, self.alone)

    def _scattered(self) -> int:
        """Bytes that hold this rank's slices, averaged.

        reduce_scatter_coalesced (runtime/comm/coalesced_collectives.py:81) joins the gradients of a
        bucket, and needs no join for one; without `reduce_scatter` the bucket is reduced in place.
        """
        settings, ledger = self.settings, self.ledger
        sent, kept = settings.communication_width, settings.accumulation_width
        if settings.contiguous and not (self.alone or settings.zero["reduce_scatter"]):
            copy = kept * self.elements if kept != sent else 0
            ledger.peek(_BUCKETS, copy)
            return copy
        # What is in the bucket has its dtype; what is larger is converted.
        converted = sent * self.alone // settings.width if sent != settings.width else 0
        whole = sum(padded(weight.elements, settings.ranks) for weight in self.pending)
        single = len(self.pending) == 1 and self.elements == whole
        joined = 0 if single else sent * whole
        gloo = sent * whole if settings.on_cpu else 0  # it scatters out of a buffer of its own
        slices = kept * whole // settings.ranks if kept != sent else 0
        with ledger.held(_BUCKETS, converted + joined):
            ledger.peek(_BUCKETS, gloo)
            ledger.peek(_BUCKETS, slices)
        return slices or joined or converted

    def _offload(self) -> None:
        """Slice by slice (:2006), in the order of registration: to the device where it was not,
        and at the boundary its norm, and a copy as the masters are (:1443)."""
        settings, ledger = self.settings, self.ledger
        kept, master = settings.accumulation_width, settings.master_width
        moves = 0 if settings.on_cpu else kept
        wide = master if master != kept else 0
        swapping = 0
        for weight in sorted(self.pending, key=lambda weight: self.order[weight.name]):
            share, index = settings.slice(weight), self.group_of[weight.name]
            swapped = self.boundary and self.groups[index].place == "nvme"
            with ledger.held(_BUCKETS, moves * share):
                if self.boundary:
                    ledger.peek(_OTHER, _NORM_WIDTH * min(share, _NORM_PART))
                    ledger.peek(_GRADIENTS, wide * share)
            if swapped:
                held = (wide or moves) * share
                ledger.hold(_GRADIENTS, held)
                if self._written(master * share):
                    swapping += held
                else:
                    self.waiting[index] += held
        ledger.free(_GRADIENTS, swapping)

    def _written(self, size: int) -> bool:
        """Whether all of a slice of `size` bytes goes to NVMe; a rest is a view of the whole."""
        settings = self.settings
        return size >= settings.least_swap_bytes and size % settings.swap_block_bytes == 0
