"""Gradients at stages 1 and 2: the buckets, and what is left of them (stage_1_and_2.py)."""

from __future__ import annotations

from collections.abc import Iterator

from ds_llama.planner.gradients import Reducer, in_partition, shares
from ds_llama.planner.ledger import Ledger
from ds_llama.planner.settings import Settings, Weight

_GRADIENTS, _BUCKETS, _OTHER = "gradients", "buckets", "other"
_NORM_WIDTH = 8  # norms are taken in fp64 (runtime/zero/utils.py:59), of a copy


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
        for group in settings.partitioned:
            self.own |= {weight.name for weight in in_partition(group, settings.ranks)}
            start = 0
            for weight in group:
                self.starts[weight.name] = start
                start += weight.elements

    def begin(self, *, first: bool, boundary: bool) -> None:
        super().begin(first=first, boundary=boundary)
        self.fresh, self.previous = True, 0

    def ready(self, weight: Weight) -> None:
        if self.bucket == 0 and self.settings.contiguous:
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
            if not (settings.contiguous or self.compact):  # kept as they are
                own = sum(w.elements for w in settings.weights if w.name in self.own)
                self.partition += self.width * own
                self.whole -= self.width * own
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
        if not self.settings.contiguous:
            pass  # it stays where it is
        elif weight.elements <= self.settings.bucket:
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
        self._free_whole(self.previous)
        self.previous = 0
        self._average()
        for weight in self.pending:
            alone = weight.elements > settings.bucket or not settings.contiguous
            if weight.name in self.own:
                if settings.contiguous:
                    self._copy(weight)
            elif alone and settings.stage == 2:
                if settings.contiguous or not settings.overlap:
                    self._free_whole(self.width * weight.elements)
                else:  # cleared when the next are reduced, :2395
                    self.previous += self.width * weight.elements
        self.pending, self.elements = [], 0

    def _average(self) -> None:
        """Slices that go to different ranks are joined until they exceed the bucket (:1545); what
        travels in another dtype is converted."""
        settings, sent = self.settings, self.settings.communication_width
        converts = sent != self.width
        if not settings.contiguous:  # joined, all of them (:2513, :2538)
            joined = self.width * self.elements * (len(self.pending) > 1)
            self.ledger.peek(_BUCKETS, joined + (sent * self.elements if converts else 0))
            return
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
