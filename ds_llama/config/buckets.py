"""Bucket sizes that fit the model, for a DeepSpeed JSON that does not say them.

DeepSpeed's defaults are 5e8 elements whatever the model: 1 GB each in half precision. All sizes
are in elements; none is above the model's own size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ds_llama.config.model import LlamaConfig

_SMALLEST = 2**23  # 16 MiB in half precision: below that a collective's latency shows
_LARGEST = 500_000_000


def for_model(model: LlamaConfig, stage: int) -> dict[str, int]:
    """`zero_optimization` keys for a stage; empty at stage 0, which has no buckets of its own.

    reduce_bucket_size: one block's parameters, so that a block is reduced while the one below it
        runs backward. Stages 1 and 2 allocate one such buffer, two with overlap_comm
        (stage_1_and_2.py `independent_gradient_partition_epilogue`), stage 3 one at construction
        (stage3.py `_setup_for_real_optimizer`). A gradient larger than the bucket, the
        embedding's, is reduced by itself.
    allgather_bucket_size: the gather after the step works in place, so a large one costs nothing;
        even, since stage_1_and_2.py asserts a multiple of its alignment factor 2.
    stage3_prefetch_bucket_size: one block ahead at most, and at most DeepSpeed's default, since
        what is fetched ahead is held besides what is used.
    stage3_param_persistence_threshold: above every norm and bias, below every matrix. The default
        of 1e5 would keep all of a small model unsharded.
    stage3_max_live_parameters, stage3_max_reuse_distance, sub_group_size,
    stage3_model_persistence_threshold: DeepSpeed's defaults, at most the model's size. With the
        reuse distance at the model's size the first half of the blocks is released between its
        forward and its backward; beyond twice the size nothing would be.
    """
    if stage == 0:
        return {}
    total, block = model.num_parameters, model.num_block_parameters
    reduce = min(max(block, _SMALLEST), _LARGEST, total)
    sizes = {"reduce_bucket_size": reduce}
    if stage < 3:
        return {**sizes, "allgather_bucket_size": _even(min(_LARGEST, total))}
    vectors = max(
        model.hidden_size,
        model.intermediate_size if model.mlp_bias else 0,
        model.attention_size if model.attention_bias else 0,
    )
    return {
        **sizes,
        "stage3_prefetch_bucket_size": min(50_000_000, block, total),
        "stage3_param_persistence_threshold": min(vectors, total),
        "stage3_model_persistence_threshold": total,
        "stage3_max_live_parameters": min(1_000_000_000, total),
        "stage3_max_reuse_distance": min(1_000_000_000, total),
        "sub_group_size": min(1_000_000_000, total),
    }


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
