"""Weights, masters and moments: what construction and registration make, and what stays.

P parameters, W ranks, e bytes of the training dtype; S = P / W, padded. Bytes on a rank:

    stage   weights   fp32 masters   moments   gradients while the update waits
    0       e P       the weights    8 P       e P
    1       e P       4 S            8 S       e P, then e S'
    2       e P       4 S            8 S       e S'
    3       e S       4 S            8 S       g S, from the start

S' counts every weight that the partition has a part of whole, g is the bytes of
`data_types.grad_accum_dtype`. An offload moves masters, moments and gradients to the host or on.
"""

from __future__ import annotations

from functools import cached_property

from ds_llama.planner.gradients import is_bf16_optimizer, shares
from ds_llama.planner.ledger import Ledger
from ds_llama.planner.settings import Settings, Weight, padded
from ds_llama.planner.subgroups import Place, SubGroup, sub_groups

_PARAMETERS, _GRADIENTS, _MASTER = "parameters", "gradients", "master"
_OPTIMIZER, _BUCKETS, _OTHER = "optimizer", "buckets", "other"


class States:
    """Plays construction, registration and updates into a ledger."""

    def __init__(self, settings: Settings, ledger: Ledger, device_memory: int | None) -> None:
        self.settings, self.ledger, self.free_bytes = settings, ledger, device_memory
        self.unswapped = 0  # bytes of slices that zero.Init left in host memory
        self.total = sum(weight.elements for weight in settings.weights)
        self.params_on_host = settings.resolved.offload_param is not None
        self.groups: tuple[SubGroup, ...] = sub_groups(settings) if settings.stage == 3 else ()

    def construct(self) -> None:
        """`zero.construct.build`."""
        if self.settings.stage == 3:
            self._partitioned()
        else:
            self.ledger.hold(_PARAMETERS, self.settings.width * self.total)

    def initialise(self) -> None:
        """`zero.register.initialize`."""
        if self.settings.stage == 0:
            return
        if self.settings.stage == 3:
            self._sharded()
        elif is_bf16_optimizer(self.settings):
            self._bf16()
        else:
            self._flat()

    def moments(self) -> None:
        """What the first step makes and no later one lets go: moments, and the weights that stay
        gathered. The update drops hpZ's copies."""
        settings, width = self.settings, self.settings.moment_width
        copies = settings.width * sum(settings.copies.values())
        self.ledger.free(_PARAMETERS, copies, host=self.params_on_host)
        self.ledger.hold(_PARAMETERS, settings.width * settings.persistent)
        if settings.stage == 3:
            self.ledger.hold(_OPTIMIZER, width * sum(self._elements("device")))
            self.ledger.hold(_OPTIMIZER, width * sum(self._elements("host")), host=True)
            self.ledger.free(_OPTIMIZER, 4 * settings.muon, host=settings.offloaded)
            return
        masters = self.total if settings.stage == 0 else sum(shares(settings))
        moments = masters * width - 4 * settings.muon
        self.ledger.hold(_OPTIMIZER, moments, host=settings.offloaded)

    @property
    def nvme_bytes(self) -> int:
        """In this rank's swap files: masters, moments and gradients, and the weights."""
        settings = self.settings
        found = sum(self._elements("nvme")) * (2 * settings.master_width + settings.moment_width)
        if settings.resolved.offload_param == "nvme":
            found += settings.width * self.slices
        return found

    def step(self) -> None:
        """An update: the norm's copy of the gradient, then the gradient as the masters want it."""
        if self.settings.stage == 3:
            self._sharded_step()
        elif self.settings.stage > 0 and not (
            self.settings.offloaded or is_bf16_optimizer(self.settings)
        ):
            self._flat_step()

    # --- shared ----------------------------------------------------------------------------------

    def _hold_host(self, category: str, size: int, offload: str = "optimizer") -> None:
        """On the host, page-locked if the offload ("optimizer" or "param") is."""
        if self.settings.pinned(offload):
            self.ledger.pin(category, size)
        else:
            self.ledger.hold(category, size, host=True)

    # --- stages 1 and 2: stage_1_and_2.py --------------------------------------------------------

    def _flatten(self, size: int) -> None:
        """A group of `size` elements into one buffer beside what it is copied from (:1390).

        Without room for that on the device, through the host, where it is there twice (:460).
        """
        ledger, e = self.ledger, self.settings.width
        flat = padded(size, 2 * self.settings.ranks)
        if self.free_bytes is not None and self.free_bytes - ledger.on_device < e * flat:
            with ledger.held(_OTHER, e * size, host=True):
                ledger.peek(_OTHER, e * flat, host=True)
        else:
            ledger.peek(_PARAMETERS, e * flat)
        ledger.hold(_PARAMETERS, e * (flat - size))

    def _flat(self) -> None:
        settings, ledger, e = self.settings, self.ledger, self.settings.width
        host = settings.offloaded
        for group, share in zip(settings.groups, shares(settings), strict=True):
            self._flatten(sum(weight.elements for weight in group))
            master = settings.master_width * share
            with ledger.held(_OTHER, 0 if e == 4 and not host else e * share):
                if not host:
                    ledger.hold(_MASTER, master)
                else:
                    self._hold_host(_MASTER, master)
                    self._hold_host(_BUCKETS, e * share)
        if host:
            self._hold_host(_BUCKETS, e * settings.largest)
            ledger.hold(_BUCKETS, e * settings.largest)
            for share in shares(settings):
                self._hold_host(_GRADIENTS, settings.master_width * share)
        else:
            ledger.peek(_GRADIENTS, settings.master_width * sum(shares(settings)))

    def _flat_step(self) -> None:
        settings, ledger = self.settings, self.ledger
        pieces = max(
            min(weight.elements, share)
            for group, share in zip(settings.groups, shares(settings), strict=True)
            for weight in group[:1]
        )
        ledger.peek(_OTHER, 8 * pieces)
        share = shares(settings)[0]
        compact = settings.accumulation_width == 4 != settings.width
        flat = 0 if compact else settings.width * share
        ledger.peek(_GRADIENTS, flat + (0 if compact or settings.width == 4 else 4 * share))

    # --- bf16 with fp32 sums at stage 1: bf16_optimizer.py ---------------------------------------

    def _bf16(self) -> None:
        settings, ledger, e = self.settings, self.ledger, self.settings.width
        for group, share in zip(settings.groups, shares(settings), strict=True):
            size = sum(weight.elements for weight in group)
            flat = padded(size, 2 * settings.ranks)
            with ledger.held(_PARAMETERS, e * size):
                ledger.hold(_PARAMETERS, e * (flat - size))
            with ledger.held(_OTHER, e * share):
                ledger.hold(_MASTER, 4 * share)
            ledger.hold(_GRADIENTS, 4 * flat)

    # --- stage 3: partition_parameters.py, stage3.py ---------------------------------------------

    @cached_property
    def slices(self) -> int:
        """Elements of this rank's slice of every weight, each padded to the ranks."""
        ranks = self.settings.ranks
        return sum(padded(weight.elements, ranks) // ranks for weight in self.settings.weights)

    def _partitioned(self) -> None:
        """zero.Init: each weight whole, in fp32 and then in its dtype (:257), before its slice."""
        settings, ledger, e = self.settings, self.ledger, self.settings.width
        whole = 4 + e if e < 4 else 4
        nvme = settings.resolved.offload_param == "nvme"
        if nvme:
            section = settings.zero["offload_param"]
            size = int(section["buffer_count"]) * settings.swapped(e * int(section["buffer_size"]))
            self._hold_host(_BUCKETS, size, "param")
        tied = settings.model.tie_word_embeddings
        order = [*settings.weights, *([settings.weights[0]] if tied else [])]
        # More and more is held: of weights of one size the last one makes the highest peak.
        last = {weight.elements: index for index, weight in enumerate(order)}
        for index, weight in enumerate(order):
            if last[weight.elements] != index:
                self._slice(weight)
                continue
            ledger.peek(_OTHER, whole * weight.elements)
            with ledger.held(_OTHER, e * weight.elements):
                if index < len(settings.weights):
                    self._slice(weight)
        copies = e * sum(settings.copies.values())
        ledger.free(_PARAMETERS, copies, host=self.params_on_host)  # as values are filled in

    def _slice(self, weight: Weight) -> None:
        """This rank's part of a weight, and hpZ's copy."""
        settings, e = self.settings, self.settings.width
        size = e * settings.slice(weight)
        if settings.copies:
            copy = e * settings.copies[weight.name]
            self.ledger.hold(_PARAMETERS, copy, host=self.params_on_host)
        if not self.params_on_host or weight.group:
            self.ledger.hold(_PARAMETERS, size)
        elif settings.resolved.offload_param == "cpu" or size < settings.least_swap_bytes:
            self.unswapped += size
            self._hold_host(_PARAMETERS, size, "param")

    def _sharded(self) -> None:
        settings, ledger = self.settings, self.ledger
        self._defragment()
        for group in self.groups:
            if group.place != "nvme":
                self._master(group.elements, host=group.place == "host")
        self._gradient_buffers()
        if settings.contiguous:
            ledger.hold(_BUCKETS, settings.communication_width * settings.bucket)
        flat = settings.accumulation_width * self.slices
        if settings.offloaded:
            self._hold_host(_GRADIENTS, flat)
        else:
            ledger.hold(_GRADIENTS, flat)
        # Each weight is gathered once, to hang its hook on (:1501).
        moved = self.params_on_host and not settings.on_cpu
        slice_ = padded(settings.largest, settings.ranks) // settings.ranks if moved else 0
        ledger.peek(_OTHER, settings.width * (settings.largest + slice_))
        copies = settings.width * sum(settings.copies.values())
        ledger.hold(_PARAMETERS, copies, host=self.params_on_host)

    def _defragment(self) -> None:
        """All slices into one buffer: by way of the host (utils.py:215), or there (stage3.py:885).

        With parameters on NVMe up to `max_in_cpu` elements stay on the host, and one sub-group more
        is needed to write the others (:997).
        """
        ledger, e = self.ledger, self.settings.width
        if not self.params_on_host:
            ledger.peek(_OTHER, e * self.slices, host=True)
            return
        ledger.pin(_PARAMETERS, e * self._flat_on_host())  # whatever `pin_memory` says, :906
        slices = min(self.unswapped, e * self._flat_on_host())
        if self.settings.pinned("param"):
            ledger.unlock(_PARAMETERS, slices)
        else:
            ledger.free(_PARAMETERS, slices, host=True)
        if self._flat_on_host() < self.slices:  # of the whole weights', not of the slices' sizes
            largest = max(self.groups, key=lambda group: group.elements)
            sizes = (self.settings.swapped(e * weight.elements) for weight in largest.weights)
            ledger.lock(_BUCKETS, sum(sizes))

    def _flat_on_host(self) -> int:
        """Elements of offloaded slices that are kept in host memory."""
        if self.settings.resolved.offload_param == "cpu":
            return self.slices
        return min(self.slices, int(self.settings.zero["offload_param"]["max_in_cpu"]))

    def _elements(self, place: Place) -> list[int]:
        """Elements of the sub-groups whose states are there."""
        return [group.elements for group in self.groups if group.place == place]

    @property
    def _largest_group(self) -> int:
        return max(group.elements for group in self.groups)

    def _master(self, share: int, *, host: bool) -> None:
        """The converted slice is cloned (stage3.py:1160)."""
        master = self.settings.master_width * share
        settings = self.settings
        same = settings.width == settings.master_width and (settings.on_cpu or not host)
        with self.ledger.held(_OTHER, 0 if same else master, host=host):
            self.ledger.hold(_MASTER, master, host=host)

    def _gradient_buffers(self) -> None:
        """What the optimizer reads its gradients from: lasting on the host, for a moment here."""
        settings, ledger, width = self.settings, self.ledger, self.settings.master_width
        largest = width * self._largest_group
        if settings.resolved.offload_optimizer == "nvme":
            count = int(settings.zero["offload_optimizer"]["buffer_count"])
            ledger.lock(_BUCKETS, count * settings.swapped(largest))
        with ledger.held(_OTHER, largest, host=settings.offloaded):
            if settings.offloaded:
                for share in self._elements("device"):  # made on the host, then moved
                    copies = 1 + settings.pinned("optimizer")
                    ledger.peek(_OTHER, copies * width * share, host=True)
                    ledger.hold(_GRADIENTS, width * share)
                for share in self._elements("host"):
                    self._hold_host(_GRADIENTS, width * share)

    def _sharded_step(self) -> None:
        """The norm's copy, piece by piece; then sub-group by sub-group the gradients, joined.

        What a partial offload leaves here is updated by torch's AdamW of many tensors, which needs
        two more of each.
        """
        settings, ledger = self.settings, self.ledger
        if settings.resolved.dtype == "float16":  # a flag for every element: is it finite? (:3013)
            ledger.peek(_GRADIENTS, self.slices, host=settings.offloaded)
        if settings.offloaded:
            for each in self.groups:
                copies = 2 * settings.master_width * each.joined
                ledger.peek(_OTHER, copies, host=each.place != "device")
            return
        largest = padded(settings.largest, settings.ranks) // settings.ranks
        ledger.peek(_OTHER, 8 * largest)
        group = self._largest_group
        flat = settings.accumulation_width * group
        ledger.peek(_GRADIENTS, flat + (4 * group if settings.accumulation_width != 4 else 0))
