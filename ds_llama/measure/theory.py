"""A step's collectives beside the ZeRO paper's count, with the cause of every byte between them.

The paper (Rajbhandari et al. 2020, section 7) counts the elements that a rank sends in a step of
one micro-batch, in parameters: 2 at stages 0 to 2 (a reduce-scatter of the gradients and an
all-gather of the weights, or an all-reduce, which is both), 3 at stage 3 (two all-gathers and a
reduce-scatter). Here in bytes of the training dtype, before the (N - 1)/N of a ring:
`Moved.volume_bytes`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Protocol

from ds_llama.config.resolve import Resolved

_ITEM_BYTES = {"float64": 8, "float32": 4, "int8": 1, "uint8": 1}
_GATHERS = frozenset(("all_gather", "broadcast"))

EVERY_RANK = (
    "gradients are all-reduced: every rank gets the sum, not its owner alone "
    "(use_multi_rank_bucket_allreduce)"
)
WIDER = "gradients travel in another dtype than the weights (communication_data_type)"
WIDER_WEIGHTS = "weights travel in another dtype than they have"
EACH_MICRO_BATCH = "gradients are reduced after every micro-batch"
GATHERED_AGAIN = "weights are gathered for every micro-batch"
KEPT = (
    "weights stay whole from forward to backward, or always "
    "(stage3_max_live_parameters, stage3_param_persistence_threshold)"
)
MORE = "weights are gathered more than twice: for recomputation, or after the update"
ONE_RANK = "one rank sends nothing; what DeepSpeed calls is copied in place, or not called"
PADDING = "padding to a multiple of the world, and what is sent whole or not at all"


class Sent(Protocol):
    """What of a `measure.traffic.Moved` is read here."""

    @property
    def elements(self) -> dict[tuple[str, str], int]: ...
    @property
    def volume_bytes(self) -> int: ...


@dataclass(frozen=True)
class Beside:
    """`measured_bytes` is `paper_bytes` and the `gaps` together, to the byte."""

    measured_bytes: int
    paper_bytes: int
    parameter_bytes: int
    gaps: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        return {
            "measured_bytes": self.measured_bytes,
            "paper_bytes": self.paper_bytes,
            "measured_volumes": round(self.measured_bytes / self.parameter_bytes, 4),
            "paper_volumes": self.paper_bytes // self.parameter_bytes,
            "gaps": dict(self.gaps),
        }


def beside(moved: Sent, resolved: Resolved) -> Beside:
    """The collectives of one step of a run beside the paper's."""
    return compared(
        moved,
        stage=resolved.stage,
        parameters=resolved.model.num_parameters,
        item_bytes=_item_bytes(resolved.dtype),
        micro_batches=resolved.accumulation_steps,
        ranks=resolved.world_size,
    )


def compared(
    moved: Sent, *, stage: int, parameters: int, item_bytes: int, micro_batches: int, ranks: int = 2
) -> Beside:
    """The same of plain numbers; item_bytes: of an element of the training dtype."""
    unit = parameters * item_bytes
    paper = 3 * unit if stage == 3 else 2 * unit
    if ranks == 1:
        gaps_of_one = {ONE_RANK: moved.volume_bytes - paper}
        return Beside(moved.volume_bytes, paper, unit, {k: n for k, n in gaps_of_one.items() if n})
    gathered = {k: n for k, n in moved.elements.items() if k[0] in _GATHERS}
    reduced = {k: n for k, n in moved.elements.items() if k[0] not in _GATHERS}
    both = 2 if stage == 0 else 1  # an all-reduce is the paper's two volumes there
    rounds = round(sum(reduced.values()) / parameters)
    gaps: Counter[str] = Counter()
    gaps[WIDER] = both * sum(n * (_item_bytes(k[1]) - item_bytes) for k, n in reduced.items())
    gaps[WIDER_WEIGHTS] = sum(n * (_item_bytes(k[1]) - item_bytes) for k, n in gathered.items())
    gaps[EACH_MICRO_BATCH] = both * max(rounds - 1, 0) * unit
    if stage > 0:
        again = sum(n * _item_bytes(k[1]) for k, n in reduced.items() if k[0] == "all_reduce")
        gaps[EVERY_RANK] = again
    wanted = (0, 1, 1, 2)[stage] * parameters
    again = (micro_batches - 1) * wanted if stage == 3 else 0
    gaps[GATHERED_AGAIN] = again * item_bytes
    surplus = sum(gathered.values()) - wanted - again
    if stage == 3:
        gaps[KEPT if surplus < 0 else MORE] = surplus * item_bytes
    gaps[PADDING] += moved.volume_bytes - paper - sum(gaps.values())
    return Beside(moved.volume_bytes, paper, unit, {k: n for k, n in gaps.items() if n})


def _item_bytes(dtype: str) -> int:
    return _ITEM_BYTES.get(dtype, 2)
