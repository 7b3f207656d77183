"""Gradients between the backward pass that makes them and the update that uses them.

    stage 0   whole, until the update; all-reduced in buckets of 5e8 elements at the boundary
    stage 1   whole until the boundary, then through the bucket into this rank's partition
    stage 2   through the bucket as they come; this rank's partition is kept
    stage 3   the same, into a flat buffer that is there from the start
    bf16 that accumulates in fp32 at stage 1 is another class, with all gradients in fp32 too

Each class below plays what one of DeepSpeed's does. A weight's gradient, in the training dtype, is
in the ledger already when `ready` is told of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ds_llama.planner.ledger import Ledger
from ds_llama.planner.settings import Settings, Weight, padded

_GRADIENTS, _BUCKETS, _OTHER = "gradients", "buckets", "other"
_NORM_WIDTH = 8  # norms are taken in fp64 (runtime/zero/utils.py:59), of a copy
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


class FlatReducer(Reducer):
    """Stages 1 and 2, runtime/zero/stage_1_and_2.py.

    Gradients gather in a bucket (:1414); when the next does not fit, the bucket is averaged and
    this rank's part of it copied (:2142) to where `step` finds it. A gradient larger than the
    bucket goes by itself. With fp32 sums of bf16 gradients the partition is one flat fp32 buffer
    (:1268), otherwise a buffer of every weight that the partition has a part of (:2185).
    """

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        super().__init__(settings, ledger)
        self.compact = settings.accumulation_width == 4 != settings.width
        self.attribute = self.compact and settings.stage == 1  # `grad_accum`, :413
        self.width = 4 if self.attribute else settings.width
        self.pending: list[Weight] = []
        self.elements = 0
        self.bucket = 0
        self.partition = 0  # bytes of what `step` will find
        self.whole = 0  # bytes of gradients that are held as the backward pass made them
        self.sums = 0
        self.own = set[str]()
        self.shares = shares(settings)
        self.starts: dict[str, int] = {}  # the first element of a weight in its flat group
        for group in settings.groups:
            self.own |= {weight.name for weight in in_partition(group, settings.ranks)}
            start = 0
            for weight in group:
                self.starts[weight.name] = start
                start += weight.elements

    def begin(self, *, first: bool, boundary: bool) -> None:
        super().begin(first=first, boundary=boundary)
        self.fresh = True

    def ready(self, weight: Weight) -> None:
        if self.bucket == 0:
            self.bucket = self.width * self.settings.bucket * (1 + self.settings.overlap)
            self.ledger.hold(_BUCKETS, self.bucket)
        size = self.settings.width * weight.elements
        if self.attribute:
            if self.first:
                self.ledger.hold(_GRADIENTS, 4 * weight.elements)
                self.whole += 4 * weight.elements
            else:
                self.ledger.peek(_GRADIENTS, 4 * weight.elements)
            self.ledger.free(_GRADIENTS, size)
        elif self.settings.stage == 1 and not self.first:
            self.ledger.free(_GRADIENTS, size)
        else:
            self.whole += size
        if self.settings.stage == 2 or (self.settings.overlap and self.boundary):
            self._bucketed(weight)

    def end(self) -> None:
        settings = self.settings
        if settings.stage == 1 and not settings.overlap and self.boundary:
            for group in settings.groups:
                for weight in group:
                    self._bucketed(weight)
        if settings.stage == 2 or self.boundary:
            self._reduce()
            if not self.attribute:  # its sums stay until the update has read them, :1080
                self._release()
        if not self.compact and not settings.offloaded and settings.stage == 2 and not self.first:
            # The sum of before is kept, and what came now is added to it (:1043).
            self.ledger.free(_GRADIENTS, self.sums)
            self.partition -= self.sums
        if settings.stage == 2 and not settings.offloaded and not self.compact:
            self.sums = self.partition

    def clear(self) -> None:
        self._release()
        self.ledger.free(_GRADIENTS, self.partition)
        self.partition = self.sums = 0

    def _release(self) -> None:
        self.ledger.free(_GRADIENTS, self.whole)
        self.ledger.free(_BUCKETS, self.bucket)
        self.whole = self.bucket = 0

    # --- the bucket ------------------------------------------------------------------------------

    def _bucketed(self, weight: Weight) -> None:
        size = self.width * weight.elements
        if self.elements + weight.elements > self.settings.bucket:
            self._reduce()
        if weight.elements <= self.settings.bucket:
            self._free_whole(size)  # copied into the bucket
        elif self.settings.offloaded:
            self.ledger.peek(_GRADIENTS, size)  # cloned, :1446
        self.elements += weight.elements
        self.pending.append(weight)

    def _free_whole(self, size: int) -> None:
        self.ledger.free(_GRADIENTS, size)
        self.whole -= size

    def _reduce(self) -> None:
        if not self.pending:
            return
        settings = self.settings
        if self.compact and not self.partition and any(w.name in self.own for w in self.pending):
            self._hold_partition(4 * sum(shares(settings)))
        self._average()
        for weight in self.pending:
            alone = weight.elements > settings.bucket
            if weight.name in self.own:
                self._copy(weight)
            elif alone and settings.stage == 2:
                self._free_whole(self.width * weight.elements)
        self.pending, self.elements = [], 0

    def _average(self) -> None:
        """Slices that go to different ranks are joined until they exceed the bucket (:1545); what
        travels in another dtype is converted."""
        settings, sent = self.settings, self.settings.communication_width
        converts = sent != self.width
        if not settings.zero["reduce_scatter"]:
            self.ledger.peek(_BUCKETS, sent * self.elements if converts else 0)
            return
        for elements, slices in self._joins():
            size = self.width * elements if slices > 1 else 0
            self.ledger.peek(_BUCKETS, size + (sent * elements if converts else 0))

    def _joins(self) -> Iterator[tuple[int, int]]:
        """Elements and number of the slices that are reduced in one call."""
        elements = count = 0
        for size in self._slices():
            elements, count = elements + size, count + 1
            if elements > self.settings.bucket:
                yield elements, count
                elements = count = 0
        if count:
            yield elements, count

    def _slices(self) -> Iterator[int]:
        """The bucket cut where one rank's part ends; neighbours of one rank are one slice, but this
        rank's own, which go to a place each in a flat fp32 partition (:1674)."""
        before, size = -1, 0
        for weight in self.pending:
            share = self.shares[weight.group]
            start, end = self.starts[weight.name], self.starts[weight.name] + weight.elements
            jump = max(1, weight.elements // share // 64)  # many small ones add up like fewer
            while start < end:
                rank = start // share
                stop = min(end, (rank + jump) * share)
                if rank != before or (self.compact and rank == 0):
                    if size:
                        yield size
                    size = 0
                before, size, start = rank, size + stop - start, stop
        yield size

    def _copy(self, weight: Weight) -> None:
        """This rank's part of an averaged gradient to where the update finds it."""
        settings, ledger = self.settings, self.ledger
        share = min(weight.elements, self.shares[weight.group])
        if settings.offloaded:
            if self.boundary:
                ledger.peek(_OTHER, max(_NORM_WIDTH, 4 if self.width != 4 else 0) * share)
            if not self.compact and not (self.first and self.boundary):
                self._sum_on_host(weight)
        elif not self.compact:
            if self.fresh:
                self.fresh = False
                whole = [w for w in settings.weights if w.name in self.own]
                self._hold_partition(self.width * sum(w.elements for w in whole))
            if weight.elements > settings.bucket:
                self._free_whole(self.width * weight.elements)
        elif self.attribute and weight.elements > settings.bucket:
            self._free_whole(self.width * weight.elements)

    def _sum_on_host(self, weight: Weight) -> None:
        """`accumulated_grads_in_cpu`, :1809: the whole weight's, as it is trained in, for good."""
        if self.first:
            self.ledger.hold(_GRADIENTS, self.settings.width * weight.elements, host=True)

    def _hold_partition(self, size: int) -> None:
        self.ledger.hold(_GRADIENTS, size)
        self.partition += size


class ShardedReducer(Reducer):
    """Stage 3, runtime/zero/stage3.py: into the flat buffer of this rank's slices (:791)."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        super().__init__(settings, ledger)
        self.pending: list[Weight] = []
        self.elements = self.alone = self.unswapped = 0
        self.swapped = settings.resolved.offload_optimizer == "nvme"

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

    def clear(self) -> None:
        self.ledger.free(_GRADIENTS, self.unswapped)
        self.unswapped = 0

    def _reduce(self) -> None:
        """reduce_scatter_coalesced (runtime/comm/coalesced_collectives.py:81), then the copies.

        Without `reduce_scatter` a bucket is all-reduced where it is (:1674), what does not fit into
        one is not.
        """
        if not self.pending:
            return
        settings, ranks = self.settings, self.settings.ranks
        sent, kept = settings.communication_width, settings.accumulation_width
        whole = sum(padded(weight.elements, ranks) for weight in self.pending)
        # What is in the bucket has its dtype; what is larger is converted.
        converted = sent * self.alone // settings.width if sent != settings.width else 0
        single = len(self.pending) == 1 and self.elements % ranks == 0
        in_place = settings.contiguous and not (self.alone or settings.zero["reduce_scatter"])
        joined = 0 if single or in_place else sent * whole
        gloo = sent * whole if settings.on_cpu else 0  # it scatters out of a buffer of its own
        self.ledger.peek(_BUCKETS, converted + joined + gloo)
        share = whole // ranks
        scattered = kept * (self.elements if in_place else share) if kept != sent else 0
        offload = self._offload(share) if settings.offloaded else 0
        self.ledger.peek(_BUCKETS, converted + joined + scattered + offload)
        self.ledger.free(_GRADIENTS, self.alone)
        self.pending, self.elements, self.alone = [], 0, 0

    def _offload(self, share: int) -> int:
        """Slice by slice (:1434): summed on the device, its norm, and as fp32 on the way out.

        What goes to NVMe waits there for the others of its bucket.
        """
        settings, kept = self.settings, self.settings.accumulation_width
        largest = max(self._slice(weight) for weight in self.pending)
        wide = settings.master_width if settings.master_width != kept else 0
        norm = (0 if kept == _NORM_WIDTH else _NORM_WIDTH) * min(largest, 250_000_000)
        waiting = 0
        if self.swapped:
            waiting = wide * share if settings.on_cpu else settings.master_width * share
            if self.boundary:
                self._keep_unswapped(wide)
        moved = 0 if settings.on_cpu else kept * largest
        return moved + max(norm, wide * largest) + waiting

    def _keep_unswapped(self, wide: int) -> None:
        """Those too small for NVMe wait on the host until the update (optimizer_utils.py:247)."""
        master = self.settings.master_width
        if not self.settings.on_cpu:
            wide = master
        small = sum(s for s in map(self._slice, self.pending) if master * s < 2**20)
        self.ledger.hold(_GRADIENTS, wide * small)
        self.unswapped += wide * small

    def _slice(self, weight: Weight) -> int:
        return padded(weight.elements, self.settings.ranks) // self.settings.ranks


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


def reducer(settings: Settings, ledger: Ledger) -> Reducer:
    """What handles gradients in the engine that `deepspeed.initialize` makes."""
    if settings.stage == 0:
        return Reducer(settings, ledger)
    if settings.stage == 3:
        return ShardedReducer(settings, ledger)
    return (
        Bf16Reducer(settings, ledger)
        if is_bf16_optimizer(settings)
        else FlatReducer(settings, ledger)
    )


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
