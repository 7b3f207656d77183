"""Legal values that cost time or memory without anyone wanting it."""

from __future__ import annotations

from collections.abc import Iterator

from ds_llama.config.problems import Problem
from ds_llama.config.rules import Context
from ds_llama.units import format_bytes, format_count

_ZERO = "zero_optimization"


def no_prefetch(context: Context) -> Iterator[Problem]:
    """partitioned_param_coordinator.py:452."""
    for name in (
        *("stage3_max_live_parameters", "max_live_parameters"),
        *("stage3_prefetch_bucket_size", "prefetch_bucket_size"),
    ):
        if context.stage == 3 and context.get(f"{_ZERO}.{name}") == 0:
            yield Problem(
                "no-prefetch",
                "warning",
                f"{_ZERO}.{name}",
                f"{name} 0 turns prefetching off: every layer waits for its weights",
                "leave it out",
            )


def tiny_sub_groups(context: Context) -> Iterator[Problem]:
    size = context.get(f"{_ZERO}.sub_group_size")
    if context.stage == 3 and size is not None and size < 1_000_000:
        group = "each parameter is" if size == 0 else f"every {int(size)} elements are"
        yield Problem(
            "tiny-sub-groups",
            "warning",
            f"{_ZERO}.sub_group_size",
            f"sub_group_size {int(size)}: {group} an optimizer step of its own",
            "leave it out, or write 1e9 (1e8 with NVMe)",
        )


def buckets(context: Context) -> Iterator[Problem]:
    if context.model is None or context.stage == 0:
        return
    total = context.model.num_parameters
    for name in ("reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size"):
        size = context.get(f"{_ZERO}.{name}")
        if size is not None and size > total:
            yield Problem(
                "bucket-above-model",
                "warning",
                f"{_ZERO}.{name}",
                f"{name} ({format_count(size)} elements) is above the model's "
                f"{format_count(total)} parameters, and is allocated whatever the model",
                "leave it out, and it is made to fit the model",
            )


def huge_buckets(context: Context) -> Iterator[Problem]:
    """Where the model is not known: above what any model gains from."""
    for name in ("reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size"):
        size = context.get(f"{_ZERO}.{name}")
        if context.model is None and context.stage > 0 and size is not None and size > 2e9:
            yield Problem(
                "huge-bucket",
                "warning",
                f"{_ZERO}.{name}",
                f"{name} ({format_count(size)} elements) takes {format_bytes(2 * size)} in half "
                "precision, whatever the model",
                "write 5e8 or less",
            )


def unpinned(context: Context) -> Iterator[Problem]:
    """offload_config.py:45: pinned memory is what copies beside the computation need."""
    if context.device == "cpu" or context.dialect == "run":
        return
    for name in ("offload_optimizer", "offload_param"):
        key = f"{_ZERO}.{name}.pin_memory"
        if context.offload(name) and context.get(key, True) is False:
            yield Problem(
                "unpinned-offload",
                "warning",
                key,
                f"{name} without pinned memory is copied by the host, while the GPU waits",
                "leave it out (true is the default), unless host memory is too short to pin",
            )


def persistence(context: Context) -> Iterator[Problem]:
    if context.model is None or context.stage != 3:
        return
    smallest = context.model.hidden_size * context.model.key_value_size
    for name in ("stage3_param_persistence_threshold", "param_persistence_threshold"):
        size = context.get(f"{_ZERO}.{name}")
        if size is not None and size >= smallest:
            yield Problem(
                "persistence-above-matrix",
                "warning",
                f"{_ZERO}.{name}",
                f"{name} ({format_count(size)}) keeps matrices unsharded on every rank: the "
                f"model's smallest has {format_count(smallest)} elements",
                "leave it out, and only norms and biases stay",
            )


def tiny_reduce_bucket(context: Context) -> Iterator[Problem]:
    size = context.get(f"{_ZERO}.reduce_bucket_size")
    small = context.model is None or context.model.num_parameters > 10_000_000
    if context.stage > 0 and size is not None and size < 1_000_000 and small:
        yield Problem(
            "tiny-reduce-bucket",
            "warning",
            f"{_ZERO}.reduce_bucket_size",
            f"reduce_bucket_size {int(size)}: thousands of small collectives a step",
            "leave it out, or write 5e7 to 5e8",
        )


def synchronising(context: Context) -> Iterator[Problem]:
    keys = {
        "wall_clock_breakdown": "synchronises the device around every phase",
        "memory_breakdown": "reads memory at every phase",
        "comms_logger.enabled": "synchronises around every collective",
        "flops_profiler.enabled": "hooks every module and turns wall_clock_breakdown on",
    }
    for key, what in keys.items():
        if context.get(key, False):
            yield Problem(
                "slow-diagnostics",
                "warning",
                key,
                f"{key.split('.')[0]} {what}: throughput is not what it is without",
                "turn it off when done looking",
            )
