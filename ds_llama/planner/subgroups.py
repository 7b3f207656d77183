"""Sub-groups: what stage 3 updates at a time, and where it keeps the states of each.

As stage3.py:1210 fills them: the weight that reaches `sub_group_size` is in. An offload with a
`ratio` below 1 leaves the first of them on the device (stage3.py:1106); one smaller than what a
disk is written with stays in host memory (swap_tensor/optimizer_utils.py:240).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ds_llama.planner.settings import Settings, Weight

Place = Literal["device", "host", "nvme"]


@dataclass(frozen=True)
class SubGroup:
    """`elements`: of this rank's part. `place`: of its masters, moments and gradients. `joined`:
    elements that its update needs two fp32 copies of, torch's AdamW for many tensors, which updates
    what `ratio` does not give to DeepSpeed's, even on NVMe (stage3.py:1250)."""

    weights: tuple[Weight, ...]
    elements: int
    place: Place
    joined: int = 0


def sub_groups(settings: Settings) -> tuple[SubGroup, ...]:
    """All of a rank's, in the order in which they are updated."""
    filled = list(_filled(settings))
    ratio = float((settings.zero.get("offload_optimizer") or {}).get("ratio", 1.0))
    kept = int((1 - ratio) * len(filled)) if settings.offloaded else len(filled)
    swapped = settings.resolved.offload_optimizer == "nvme"
    found = []
    for index, weights in enumerate(filled):
        elements = sum(settings.slice(weight) for weight in weights)
        place: Place = "device" if index < kept else "host"
        if swapped and elements * settings.master_width >= settings.least_swap_bytes:
            place = "nvme"
        joined = elements if settings.offloaded and index < kept else 0
        found.append(SubGroup(weights, elements, place, joined))
    return tuple(found)


def _filled(settings: Settings) -> Iterator[tuple[Weight, ...]]:
    limit = int(settings.zero["sub_group_size"])
    for group in settings.groups:
        weights: list[Weight] = []
        elements = 0
        for weight in group:
            weights.append(weight)
            elements += settings.slice(weight)
            if elements >= limit:
                yield tuple(weights)
                weights, elements = [], 0
        if weights:
            yield tuple(weights)
