"""The `activation_checkpointing` section (runtime/activation_checkpointing/checkpointing.py)."""

from __future__ import annotations

from collections.abc import Iterator

from ds_llama.config.problems import Problem
from ds_llama.config.rules import Context

_SECTION = "activation_checkpointing"


def only_if_called(context: Context) -> Iterator[Problem]:
    if context.dialect != "run" and context.has(_SECTION):
        yield Problem(
            "checkpointing-not-called",
            "warning",
            _SECTION,
            "the section does nothing unless the model calls deepspeed.checkpointing, which "
            "Hugging Face's models do not",
            "remove it, and turn recomputation on in the model; runs of ds_llama act on it",
        )


def contiguous(context: Context) -> Iterator[Problem]:
    """checkpointing.py:1229-1231 assert both."""
    key = f"{_SECTION}.contiguous_memory_optimization"
    if not context.get(key, False):
        return
    if not context.get(f"{_SECTION}.partition_activations", False):
        yield Problem(
            "contiguous-without-partition",
            "error",
            key,
            "contiguous_memory_optimization needs partition_activations",
            "turn both on, or this one off",
        )
    if not context.get(f"{_SECTION}.number_checkpoints"):
        yield Problem(
            "contiguous-without-number",
            "error",
            f"{_SECTION}.number_checkpoints",
            "contiguous_memory_optimization needs number_checkpoints",
            "write the number of blocks, or turn contiguous_memory_optimization off",
        )


def host_without_partition(context: Context) -> Iterator[Problem]:
    """Device and host are one on a CPU: the recomputed forward reads what was overwritten."""
    key = f"{_SECTION}.cpu_checkpointing"
    partitioned = context.get(f"{_SECTION}.partition_activations", False)
    if context.device == "cpu" and context.get(key, False) and not partitioned:
        yield Problem(
            "host-checkpointing-on-cpu",
            "error",
            key,
            "cpu_checkpointing without partition_activations breaks the recomputed forward on CPU, "
            "where device and host are one",
            "turn it off, or partition_activations on",
        )


def partition_alone(context: Context) -> Iterator[Problem]:
    key = f"{_SECTION}.partition_activations"
    if context.get(key, False) and context.get("tensor_parallel.autotp_size", 0) <= 1:
        yield Problem(
            "partition-alone",
            "warning",
            key,
            "partition_activations does nothing without tensor parallelism: there is no one to "
            "share the activations with",
            "leave it out",
        )
