"""Bytes that one rank moves in one optimizer step: collectives, host link, NVMe.

A collective counts the bytes of its whole tensor: what an all-gather gives, what a reduce-scatter
is given. A ring moves (N - 1) / N of that over every rank's link, an all-reduce twice as much.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ds_llama.config.resolve import Resolved
from ds_llama.planner import gathers

_BYTES = {
    "float32": 4, "fp32": 4, "float": 4,
    "bfloat16": 2, "bf16": 2, "bfp16": 2,
    "float16": 2, "fp16": 2, "half": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Traffic:
    """Of one rank and optimizer step.

    collectives: bytes of whole tensors by kind. calls: how many collectives move them. theory: the
    same dict as the ZeRO paper counts it (Rajbhandari et al. 2020, section 7), for the step's own
    accumulation. during_backward_bytes: the part of `collectives` that has the forward or backward
    pass to hide behind.
    """

    collectives: dict[str, int]
    calls: int
    theory: dict[str, int]
    to_device_bytes: int = 0
    to_host_bytes: int = 0
    nvme_read_bytes: int = 0
    nvme_write_bytes: int = 0

    @property
    def host_link_bytes(self) -> int:
        """Both ways together."""
        return self.to_device_bytes + self.to_host_bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**asdict(self), "host_link_bytes": self.host_link_bytes}


def element_bytes(dtype: str | None) -> int | None:
    """Bytes of one element of a dtype in DeepSpeed's or torch's words; None for no dtype."""
    return None if dtype is None else _BYTES[dtype.removeprefix("torch.")]


def limits(zero: dict[str, Any]) -> gathers.Limits:
    """The coordinator's settings out of a resolved `zero_optimization`."""
    return gathers.Limits(
        prefetch_bucket_size=int(zero["stage3_prefetch_bucket_size"]),
        max_live_parameters=int(zero["stage3_max_live_parameters"]),
        max_reuse_distance=int(zero["stage3_max_reuse_distance"]),
        param_persistence_threshold=int(zero["stage3_param_persistence_threshold"]),
        model_persistence_threshold=int(zero["stage3_model_persistence_threshold"]),
    )


def traffic(resolved: Resolved) -> Traffic:
    """What DeepSpeed moves in a step of `resolved`, once its trace is complete (from step 2)."""
    return _stage3(resolved) if resolved.stage == 3 else _flat(resolved)


def _flat(resolved: Resolved) -> Traffic:
    zero, total = resolved.deepspeed["zero_optimization"], resolved.model.num_parameters
    size, world = element_bytes(resolved.dtype) or 4, resolved.world_size
    sent = element_bytes(resolved.deepspeed.get("communication_data_type")) or size
    rounds = resolved.accumulation_steps if resolved.stage == 2 else 1
    padded = _padded(total, world)
    collectives = {"all_reduce": rounds * total * sent}
    theory = {"all_reduce": total * sent}
    if resolved.stage > 0:
        collectives["all_gather"] = padded * size
        theory = {"reduce_scatter": rounds * total * sent, "all_gather": total * size}
        if not zero.get("use_multi_rank_bucket_allreduce", True):
            collectives = {"reduce": rounds * total * sent, "all_gather": padded * size}
    bucket = max(1, int(zero.get("reduce_bucket_size", 25_000_000 // size)))
    calls = rounds * math.ceil(total / bucket) + (2 if resolved.stage else 0)
    down = up = read = write = 0
    if resolved.offload_optimizer is not None:
        share = padded // world
        down, up = resolved.accumulation_steps * share * size, share * size
    return Traffic(collectives, calls, theory, up, down, read, write)


def _stage3(resolved: Resolved) -> Traffic:
    zero, world = resolved.deepspeed["zero_optimization"], resolved.world_size
    size, rounds = element_bytes(resolved.dtype) or 4, resolved.accumulation_steps
    sent = element_bytes(resolved.deepspeed.get("communication_data_type")) or size
    sizes = {name: _padded(n, world) for name, n in gathers.weights(resolved.model).items()}
    total, held = resolved.model.num_parameters, sum(sizes.values()) // world
    recompute = resolved.run.train.recompute
    if "activation_checkpointing" not in resolved.deepspeed:
        recompute = None
    found = gathers.replay(gathers.trace(resolved.model, recompute), sizes, limits(zero))
    collectives = {
        "all_gather": (rounds * found.elements + found.persistent_elements) * size,
        "reduce_scatter": rounds * held * world * sent,
    }
    theory = {"all_gather": rounds * 2 * total * size, "reduce_scatter": rounds * total * sent}
    bucket = max(1, int(zero["reduce_bucket_size"]))
    calls = rounds * (found.calls + math.ceil(total / bucket)) + 1
    down = up = read = write = 0
    if resolved.offload_optimizer is not None:
        down += rounds * held * size
        up += held * size
    if resolved.offload_optimizer == "nvme":
        read, write = 12 * held, 12 * held
    if resolved.offload_param is not None:
        up += rounds * found.elements // world * size
    if resolved.offload_param == "nvme":
        read += rounds * found.elements // world * size
        write += held * size
    return Traffic(collectives, calls, theory, up, down, read, write)


def _padded(elements: int, ranks: int) -> int:
    """The next multiple of `ranks`."""
    return -(-elements // ranks) * ranks
