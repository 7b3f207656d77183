"""Bytes that one rank moves in one optimizer step: collectives, host link, NVMe.

A collective counts the bytes of its whole tensor, as `measure.traffic` does: what an all-gather
gives, what a reduce-scatter is given. A ring moves (N - 1) / N of that over every rank's link, an
all-reduce twice as much. What DeepSpeed 0.19.8 really does, against the paper's count (`theory`):

    stages 1, 2   gradients are all-reduced in buckets, by every rank for all of them, unless
                  use_multi_rank_bucket_allreduce is false: stage 1 once a step, stage 2 every
                  micro-batch; then one all-gather of the new weights
    stage 3       a reduce-scatter every micro-batch, and the all-gathers that replaying its
                  coordinator gives (`gathers.py`): one, two or three times the weights

hpZ and ZeRO++'s quantisation move less than this says, which counts plain stage 3.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ds_llama.config.resolve import Resolved
from ds_llama.planner import gathers
from ds_llama.planner.coordinator import Limits

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


def limits(zero: dict[str, Any]) -> Limits:
    """The coordinator's settings out of a resolved `zero_optimization`."""
    return Limits(
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
    if resolved.stage > 0 and world == 1:
        theory = {"reduce_scatter": rounds * total * sent}
    elif resolved.stage > 0:
        collectives["all_gather"] = padded * size
        theory = {"reduce_scatter": rounds * total * sent, "all_gather": total * size}
        if not zero.get("use_multi_rank_bucket_allreduce", True):
            collectives = {"reduce": rounds * total * sent, "all_gather": padded * size}
    calls = rounds * _buckets(resolved, leaves=False) + (2 if "all_gather" in collectives else 0)
    down, up = 0, _tokens(resolved)
    if resolved.offload_optimizer is not None:
        share, steps = padded // world, resolved.accumulation_steps
        down, up = 4 * share, up + share * size
        if steps > 1 and not _compact(resolved):
            whole = _touched(gathers.weights(resolved.model), world) * size
            down, up = down + steps * whole, up + (steps - 1) * whole
    return Traffic(collectives, calls, theory, up, down)


def _stage3(resolved: Resolved) -> Traffic:
    zero, world = resolved.deepspeed["zero_optimization"], resolved.world_size
    size, rounds = element_bytes(resolved.dtype) or 4, resolved.accumulation_steps
    sent = element_bytes(resolved.deepspeed.get("communication_data_type")) or size
    whole = gathers.weights(resolved.model)
    sizes = {name: _padded(n, world) for name, n in whole.items()}
    total, held = resolved.model.num_parameters, sum(sizes.values()) // world
    recompute = resolved.run.train.recompute
    if "activation_checkpointing" not in resolved.deepspeed:
        recompute = None
    leaves = resolved.run.train.compile
    trace = gathers.trace(resolved.model, recompute, leaves=leaves)
    found = gathers.replay(trace, whole, limits(zero), world)
    collectives = {
        "all_gather": (rounds * found.elements + found.persistent_elements) * size,
        "reduce_scatter": rounds * held * world * sent,
    }
    if world == 1:
        del collectives["all_gather"]
    theory = {"all_gather": rounds * 2 * total * size, "reduce_scatter": rounds * total * sent}
    calls = rounds * _buckets(resolved, leaves=leaves)
    if world > 1:
        # After the step each weight that persists is gathered by itself (stage3.py:2841).
        calls += rounds * found.calls + len(gathers.persistent(whole, limits(zero)))
    gathered = (rounds * found.elements + found.persistent_elements) // world * size
    down, up, read, write = 0, _tokens(resolved), 0, 0
    if resolved.offload_optimizer is not None:
        added = element_bytes(resolved.deepspeed.get("data_types", {}).get("grad_accum_dtype"))
        # Each micro-batch's gradients go down and come back to be measured (stage3.py:2025).
        down += held * (rounds * (added or size) + 4)
        up += held * rounds * (added or size)
    if resolved.offload_param is not None:
        up += gathered
    elif resolved.offload_optimizer is not None:
        up += held * size
    if resolved.offload_optimizer == "nvme":
        read = write = _swapped_optimizer(sizes, world)
    if resolved.offload_param == "nvme":
        large = [n // world * size for n in sizes.values() if n // world * size >= _LEAST_SWAPPED]
        read += sum(large) * gathered // (held * size)
        write += sum(large)
    return Traffic(collectives, calls, theory, up, down, read, write)


def _buckets(resolved: Resolved, *, leaves: bool) -> int:
    """How many times a bucket of gradients is reduced in the backward pass of a micro-batch: before
    one that it has no room for (stage_1_and_2.py:1422, stage3.py:1584), and at the end."""
    sizes = gathers.weights(resolved.model)
    order = gathers.visits(resolved.model, None, leaves=leaves)
    bucket = int(resolved.deepspeed["zero_optimization"].get("reduce_bucket_size", 500_000_000))
    made = [n for visit in order if visit.way == "backward" for n in visit.weights]
    if resolved.model.tie_word_embeddings:
        made.remove("embed")  # the head's waits for the embedding's
    calls = held = 0
    for size in map(sizes.__getitem__, made):
        if held and held + size > bucket:
            calls, held = calls + 1, 0
        held += size
    return calls + 1


def _tokens(resolved: Resolved) -> int:
    """Bytes of input ids and labels, which are int64, on their way to the device."""
    rows = resolved.micro_batch_size * resolved.accumulation_steps
    return 2 * 8 * rows * resolved.run.data.sequence_length


def _compact(resolved: Resolved) -> bool:
    """Whether a rank adds up its own part of the gradients on the device, in fp32, at stages 1 and
    2 (stage_1_and_2.py:1259); else each micro-batch's go to the host and back (:1809)."""
    chosen = resolved.deepspeed.get("data_types", {}).get("grad_accum_dtype")
    return resolved.dtype != "float32" and element_bytes(chosen) == 4


# swap_tensor/utils.py:14: what is smaller stays in host memory.
_LEAST_SWAPPED = 2**20


def _groups(sizes: dict[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """The optimizer's groups in the order of registration: matrices, and vectors."""
    vectors = {name: size for name, size in sizes.items() if name.endswith("norm")}
    return {name: size for name, size in sizes.items() if name not in vectors}, vectors


def _swapped_optimizer(sizes: dict[str, int], world: int) -> int:
    """Bytes read, and written, in a step: fp32 masters and both moments of each group, and the
    gradients of the larger weights, which wait there for the step (optimizer_utils.py:231)."""
    shares = [sum(group.values()) // world for group in _groups(sizes)]
    states = sum(12 * share for share in shares if 4 * share >= _LEAST_SWAPPED)
    gradients = (4 * (size // world) for size in sizes.values())
    return states + sum(each for each in gradients if each >= _LEAST_SWAPPED)


def _touched(sizes: dict[str, int], world: int) -> int:
    """Elements of the weights that the first rank's part of each group touches, whole."""
    touched = 0
    for group in _groups(sizes):
        part, before = sum(group.values()) / world, 0
        for size in group.values():
            touched += size if before < part else 0
            before += size
    return touched


def _padded(elements: int, ranks: int) -> int:
    """The next multiple of `ranks`."""
    return -(-elements // ranks) * ranks
