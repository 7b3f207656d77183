"""Bucket sizes that fit the model, for a DeepSpeed JSON that does not say them.

DeepSpeed's defaults are 5e8 elements whatever the model: 1 GB each in half precision. All sizes
are in elements; none is above the model's own size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ds_llama.config.model import LlamaConfig

_SMALLEST = 2**23  # 16 MiB in half precision: below that a collective's latency shows
_LARGEST = 500_000_000
_PREFETCH = 50_000_000
_LIVE = 1_000_000_000
_DEFAULT = "DeepSpeed's default, since {} larger"


class Choice(NamedTuple):
    """A value of `zero_optimization`, and why it is that one, in words for a plan."""

    value: int | bool
    why: str


def for_model(model: LlamaConfig, stage: int) -> dict[str, int]:
    """`zero_optimization` keys for a stage; empty at stage 0, which has no buckets of its own.

    Those of `choices`, and stage3_max_reuse_distance, sub_group_size and
    stage3_model_persistence_threshold: DeepSpeed's defaults, at most the model's size. With the
    reuse distance at the model's size the first half of the blocks is released between its forward
    and its backward; beyond twice the size nothing would be.
    """
    sizes: dict[str, int] = {name: own.value for name, own in choices(model, stage).items()}
    sizes.pop("overlap_comm", None)
    if stage < 3:
        return sizes
    total = model.num_parameters
    sizes["stage3_model_persistence_threshold"] = total
    sizes["stage3_max_reuse_distance"] = sizes["sub_group_size"] = min(_LIVE, total)
    return sizes


def choices(model: LlamaConfig, stage: int) -> dict[str, Choice]:
    """What is decided by the model's size, each with its reason.

    Large enough that bandwidth counts and not latency, and no larger than a block where that is
    enough: of a model that fits at all a block is a small part, and so are its buckets, whatever
    memory is free. The number of ranks is not asked: a ring over N of them sends a bucket's N-th
    part at a time, 0.4 MB of a block of LLaMA-7B at 1024, and what larger ones would bring there
    was not measured.

    reduce_bucket_size: stages 1 and 2 allocate one such buffer, two with overlap_comm
        (stage_1_and_2.py `independent_gradient_partition_epilogue`), stage 3 one at construction
        (stage3.py `_setup_for_real_optimizer`). A gradient larger than the bucket, the
        embedding's, is reduced by itself.
    allgather_bucket_size: even, since stage_1_and_2.py asserts a multiple of its alignment 2.
    stage3_prefetch_bucket_size: what is fetched ahead is held besides what is used.
    stage3_param_persistence_threshold: the default of 1e5 would keep all of a small model whole.
    overlap_comm: DeepSpeed's own (runtime/zero/config.py `overlap_comm_valid`).
    """
    if stage == 0:
        return {}
    total, block = model.num_parameters, model.num_block_parameters
    overlap = (
        Choice(True, "weights and gradients travel beside the computation")
        if stage == 3
        else Choice(False, "as DeepSpeed has it below stage 3: true takes a second reduce bucket")
    )
    found = {"reduce_bucket_size": _reduce_bucket(block, total), "overlap_comm": overlap}
    whole = Choice(total, "the whole model")
    if stage < 3:
        gather = "the whole model: the gather after the step is made in place, and takes nothing"
        largest = total > _LARGEST
        why = _DEFAULT.format("the model is") if largest else gather
        return {**found, "allgather_bucket_size": Choice(_even(min(_LARGEST, total)), why)}
    ahead = Choice(block, "one block is fetched ahead")
    if block > _PREFETCH:
        ahead = Choice(_PREFETCH, _DEFAULT.format("a block is"))
    live = Choice(_LIVE, _DEFAULT.format("the model is")) if total > _LIVE else whole
    vectors = max(
        model.hidden_size,
        model.intermediate_size if model.mlp_bias else 0,
        model.attention_size if model.attention_bias else 0,
    )
    return {
        **found,
        "stage3_prefetch_bucket_size": _at_most(total, ahead),
        "stage3_max_live_parameters": live,
        "stage3_param_persistence_threshold": _at_most(
            total, Choice(vectors, "above norms and biases, which stay whole; below every matrix")
        ),
    }


def _reduce_bucket(block: int, total: int) -> Choice:
    wanted = Choice(block, "one block, reduced while the one below it runs backward")
    if block < _SMALLEST:
        wanted = Choice(_SMALLEST, "more than a block, so that bandwidth counts and not latency")
    if block > _LARGEST:
        wanted = Choice(_LARGEST, _DEFAULT.format("a block is"))
    return _at_most(total, wanted)


def _at_most(total: int, choice: Choice) -> Choice:
    return choice if choice.value <= total else Choice(total, "the whole model")


def for_offload(model: LlamaConfig, zero: Mapping[str, Any], world_size: int) -> dict[str, Any]:
    """`zero_optimization` keys that stage 3 with an offload needs otherwise; over `for_model`'s.

    sub_group_size: NVMe holds buffer_count fp32 buffers of a sub-group's size in host memory
        (swap_tensor/optimizer_utils.py:197); Twin-Flow and SuperOffload divide the work by whole
        sub-groups (stage3.py:1106), so there must be some 16 of them. Elements of one rank.
    offload_param.buffer_size: the largest partition of a parameter; a larger one is an
        AssertionError (partitioned_param_swapper.py:357), and DeepSpeed's 1e8, five times, 1 GB.
    stage3_max_reuse_distance: 0 with parameters on NVMe. What is kept for its next use keeps its
        swap buffer, and DeepSpeed stops when there is none left (partitioned_param_swapper.py:310).
    """
    optimizer, parameters = (zero.get(f"offload_{n}") or {} for n in ("optimizer", "param"))
    total, keys = model.num_parameters, dict[str, Any]()
    shared = optimizer.get("ratio", 1.0) < 1.0 or optimizer.get("super_offload", False)
    if optimizer.get("device") == "cpu" and shared:
        keys["sub_group_size"] = min(100_000_000, max(1, total // world_size // 16))
    if optimizer.get("device") == "nvme":
        keys["sub_group_size"] = min(100_000_000, total)
    if parameters.get("device") == "nvme":
        keys["stage3_max_reuse_distance"] = 0
        keys["offload_param"] = {"buffer_size": -(-_largest_matrix(model) // world_size)}
    return keys


def _largest_matrix(model: LlamaConfig) -> int:
    return model.hidden_size * max(
        model.vocab_size, model.intermediate_size, model.attention_size, model.hidden_size
    )


def _even(size: int) -> int:
    return max(2, size - size % 2)
