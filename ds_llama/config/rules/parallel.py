"""Tensor, sequence and pipeline parallelism, and what a run of this package does not do."""

from __future__ import annotations

from collections.abc import Iterator

from ds_llama.config.problems import Problem
from ds_llama.config.rules import Context


def pipeline(context: Context) -> Iterator[Problem]:
    """runtime/pipe/engine.py:76."""
    stages = context.get("pipeline.stages", 1)
    if stages > 1 and context.stage >= 2:
        yield Problem(
            "pipeline-with-zero",
            "error",
            "pipeline.stages",
            f"{stages:g} pipeline stages do not work with ZeRO stage {context.stage}",
            "take ZeRO stage 0 or 1, or no pipeline",
        )


def heads(context: Context) -> Iterator[Problem]:
    model = context.model
    if model is None:
        return
    for key in ("tensor_parallel.autotp_size", "sequence_parallel_size"):
        size = int(context.get(key, 1) or 1)
        for name, count in (
            ("num_key_value_heads", model.num_key_value_heads),
            ("num_attention_heads", model.num_attention_heads),
        ):
            if count % size:
                divisors = [str(n) for n in range(1, count + 1) if count % n == 0]
                yield Problem(
                    "parallel-heads",
                    "error",
                    key,
                    f"{key} ({size}) must divide {name} ({count})",
                    f"take one of {', '.join(divisors)}",
                )
                break


def hierarchical_partition(context: Context) -> Iterator[Problem]:
    key = "zero_optimization.zero_hpz_partition_size"
    size, world = int(context.get(key, 1)), context.world_size
    # DeepSpeed takes the whole world when it is smaller (utils/groups.py `min(group_size, …)`).
    if size > 1 and world is not None and world > size and world % size:
        yield Problem(
            "hpz-world",
            "error",
            key,
            f"zero_hpz_partition_size ({size}) must divide the world size ({world})",
            "write the number of ranks in a node",
        )


def not_in_a_run(context: Context) -> Iterator[Problem]:
    """Sections that change who holds which data or module: this trainer would train wrongly."""
    if context.run is None:
        return
    sections = {
        "tensor_parallel.autotp_size": context.get("tensor_parallel.autotp_size", 0) > 1,
        "sequence_parallel_size": context.get("sequence_parallel_size", 1) > 1,
        "data_parallel_size": context.has("data_parallel_size"),
        "pipeline.stages": context.get("pipeline.stages", 1) > 1,
        "expert_parallel": context.enabled("expert_parallel"),
        "hybrid_engine": context.enabled("hybrid_engine"),
        "data_efficiency": context.enabled("data_efficiency"),
        "autotuning": context.enabled("autotuning"),
        "weight_quantization": context.has("weight_quantization"),
        "managed_gradient_accumulation": not context.get("managed_gradient_accumulation", True),
    }
    for key in (key for key, used in sections.items() if used):
        yield Problem(
            "not-in-a-run",
            "error",
            key,
            f"{key.split('.')[0]} is not something that `ds-llama train` does",
            "remove it, or use the JSON with a script of your own",
        )


def checkpoint_writer(context: Context) -> Iterator[Problem]:
    """runtime/checkpoint_engine/fast_checkpoint_engine.py:43."""
    if context.has("checkpoint.writer"):
        yield Problem(
            "checkpoint-writer",
            "error",
            "checkpoint.writer",
            "what checkpoint.writer saves cannot be loaded again",
            "remove it",
        )
