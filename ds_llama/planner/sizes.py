"""The sizes that a strategy has for its model, and why they are what they are."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ds_llama.config import buckets
from ds_llama.config.resolve import Resolved
from ds_llama.planner.gradients import is_bf16_optimizer
from ds_llama.planner.settings import Settings


@dataclass(frozen=True)
class Size:
    """A key of `zero_optimization`: elements, or whether it is on."""

    key: str
    value: int | bool
    why: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def sizes(resolved: Resolved) -> tuple[Size, ...]:
    """Those that act, in the order of `buckets.choices`."""
    zero = resolved.deepspeed["zero_optimization"]
    chosen = buckets.choices(resolved.model, resolved.stage)
    if is_bf16_optimizer(Settings(resolved)):  # knows one bucket (config/rules/bf16_engine.py)
        chosen = {key: own for key, own in chosen.items() if key == "allgather_bucket_size"}
    if zero.get("stage3_allgather_sequential"):
        chosen.pop("stage3_prefetch_bucket_size", None)
    return tuple(
        Size(key, zero[key], own.why if zero[key] == own.value else "as the run says")
        for key, own in chosen.items()
    )
