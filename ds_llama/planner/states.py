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

from ds_llama.planner.gradients import is_bf16_optimizer, shares
from ds_llama.planner.ledger import Ledger
from ds_llama.planner.settings import Settings, padded

_PARAMETERS, _GRADIENTS, _MASTER = "parameters", "gradients", "master"
_OPTIMIZER, _BUCKETS, _OTHER = "optimizer", "buckets", "other"


class States:
    """Plays construction, registration and updates into a ledger."""

    def __init__(
        self, settings: Settings, ledger: Ledger, device_memory: int | None = None
    ) -> None:
        self.settings, self.ledger, self.device_memory = settings, ledger, device_memory
        self.total = sum(weight.elements for weight in settings.weights)
        self.moments = False
        self.params_on_host = settings.resolved.offload_param is not None

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

    def step(self) -> None:
        """The update; the first makes the moments."""
        if self.settings.stage == 0:
            self._moments(4 * self.total)
        elif self.settings.stage == 3:
            self._sharded_step()
        elif is_bf16_optimizer(self.settings):
            self._moments(4 * sum(shares(self.settings)))
        else:
            self._flat_step()

    # --- shared ----------------------------------------------------------------------------------

    def _hold_host(self, category: str, size: int, pinned: bool) -> None:
        """On the host; page-locked memory is a copy of what was made there."""
        if pinned and not self.settings.on_cpu:
            with self.ledger.held(_OTHER, size, host=True):
                self.ledger.hold(category, size, host=True)
        else:
            self.ledger.hold(category, size, host=True)

    def _moments(self, master: int) -> None:
        if not self.moments:
            size = master // self.settings.master_width * self.settings.moment_width
            self.ledger.hold(_OPTIMIZER, size, host=self.settings.offloaded)
            self.moments = True

    # --- stages 1 and 2: stage_1_and_2.py --------------------------------------------------------

    def _flatten(self) -> None:
        """Every group into one buffer, beside what it is copied from (:1390); on the host if the
        device has no room for that (:452)."""
        settings, ledger, e = self.settings, self.ledger, self.settings.width
        for group in settings.groups:
            size = sum(weight.elements for weight in group)
            flat = padded(size, 2 * settings.ranks)
            ledger.hold(_PARAMETERS, e * flat)
            ledger.free(_PARAMETERS, e * size)

    def _flat(self) -> None:
        settings, ledger, e = self.settings, self.ledger, self.settings.width
        host, pinned = settings.offloaded, settings.pinned("optimizer")
        for group, share in zip(settings.groups, shares(settings), strict=True):
            size = sum(weight.elements for weight in group)
            with ledger.held(_PARAMETERS, e * padded(size, 2 * settings.ranks)):
                pass
            ledger.hold(_PARAMETERS, e * (padded(size, 2 * settings.ranks) - size))
            master = settings.master_width * share
            with ledger.held(_OTHER, 0 if e == 4 and not host else e * share):
                if not host:
                    ledger.hold(_MASTER, master)
                else:
                    self._hold_host(_MASTER, master, pinned)
                    self._hold_host(_BUCKETS, e * share, pinned)
        if host:
            self._hold_host(_BUCKETS, e * settings.largest, pinned)
            ledger.hold(_BUCKETS, e * settings.largest)
            for share in shares(settings):
                self._hold_host(_GRADIENTS, settings.master_width * share, pinned)
        else:
            ledger.peek(_GRADIENTS, settings.master_width * sum(shares(settings)))

    def _flat_step(self) -> None:
        settings, ledger = self.settings, self.ledger
        if settings.offloaded:
            self._moments(settings.master_width * sum(shares(settings)))
            return
        pieces = max(
            min(weight.elements, share)
            for group, share in zip(settings.groups, shares(settings), strict=True)
            for weight in group[:1]
        )
        ledger.peek(_OTHER, 8 * pieces)
        share = shares(settings)[0]
        compact = settings.accumulation_width == 4 != settings.width
        flat = 0 if compact else settings.width * share
        if settings.width != 4:
            ledger.peek(_GRADIENTS, flat + (0 if compact else 4 * share))
        with ledger.held(_GRADIENTS, 0 if compact else 4 * share):
            self._moments(settings.master_width * sum(shares(settings)))

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

    @property
    def slices(self) -> int:
        """Elements of this rank's slice of every weight, each padded to the ranks."""
        ranks = self.settings.ranks
        return sum(padded(weight.elements, ranks) // ranks for weight in self.settings.weights)

    def _partitioned(self) -> None:
        """zero.Init: each weight whole, in fp32 and then in its dtype (:257), before its slice."""
        settings, ledger, e = self.settings, self.ledger, self.settings.width
        whole = 4 + e if e < 4 else 4
        tied = settings.model.tie_word_embeddings
        order = [*settings.weights, *([settings.weights[0]] if tied else [])]
        for index, weight in enumerate(order):
            share = padded(weight.elements, settings.ranks) // settings.ranks
            with ledger.held(_OTHER, whole * weight.elements):
                pass
            with ledger.held(_OTHER, e * weight.elements):
                host = self.params_on_host and weight.group == 0
                if index < len(settings.weights):
                    if host:
                        self._hold_host(_PARAMETERS, e * share, settings.pinned("param"))
                    else:
                        ledger.hold(_PARAMETERS, e * share)

    def _sharded(self) -> None:
        settings, ledger, e = self.settings, self.ledger, self.settings.width
        total = self.slices
        host = settings.offloaded
        if self.params_on_host:
            with ledger.held(_OTHER, 0, host=True):
                self._hold_host(_PARAMETERS, e * total, settings.pinned("param"))
            ledger.free(_PARAMETERS, e * total, host=True)
        else:
            ledger.peek(_OTHER, e * total, host=True)
        groups = [
            sum(padded(weight.elements, settings.ranks) // settings.ranks for weight in group)
            for group in settings.groups
        ]
        master = settings.master_width
        for share in groups:
            with ledger.held(_OTHER, master * share, host=host):
                ledger.hold(_MASTER, master * share, host=host)
        with ledger.held(_GRADIENTS, master * max(groups), host=host):
            if host:
                for share in groups:
                    self._hold_host(_GRADIENTS, master * share, settings.pinned("optimizer"))
        ledger.hold(_BUCKETS, settings.communication_width * settings.bucket)
        flat = settings.accumulation_width * total
        if host:
            self._hold_host(_GRADIENTS, flat, settings.pinned("optimizer"))
        else:
            ledger.hold(_GRADIENTS, flat)
        if settings.ranks > 1:
            ledger.peek(_OTHER, e * settings.largest)

    def _sharded_step(self) -> None:
        settings, ledger = self.settings, self.ledger
        total = self.slices
        if settings.offloaded:
            self._moments(settings.master_width * total)
            return
        largest = padded(settings.largest, settings.ranks) // settings.ranks
        ledger.peek(_OTHER, 8 * largest)
        group = sum(
            padded(weight.elements, settings.ranks) // settings.ranks
            for weight in settings.groups[0]
        )
        flat = settings.accumulation_width * group
        ledger.peek(_GRADIENTS, flat + (4 * group if settings.accumulation_width != 4 else 0))
        with ledger.held(_GRADIENTS, 4 * group):
            self._moments(settings.master_width * total)
