"""The `activation_checkpointing` section (runtime/activation_checkpointing/checkpointing.py)."""

from __future__ import annotations

from collections.abc import Iterator

from ds_llama.config.problems import Problem, Severity
from ds_llama.config.rules import Context

_SECTION = "activation_checkpointing"
_CONTIGUOUS = f"{_SECTION}.contiguous_memory_optimization"
_NUMBER = f"{_SECTION}.number_checkpoints"
_PARTITION = f"{_SECTION}.partition_activations"


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
    """checkpointing.py:1229-1231 assert both; :419 runs out of buffers."""
    number = context.get(_NUMBER)
    if not context.get(_CONTIGUOUS, False):
        if number is not None:
            yield Problem(
                "number-alone",
                _severity(context),
                _NUMBER,
                "number_checkpoints does nothing without contiguous_memory_optimization, whose "
                "buffers it counts",
                "remove it",
            )
        return
    if not context.get(_PARTITION, False):
        yield Problem(
            "contiguous-without-partition",
            "error",
            _CONTIGUOUS,
            "contiguous_memory_optimization needs partition_activations",
            "turn both on, or this one off",
        )
    needed = _recomputed_parts(context)
    if number is None:
        yield Problem(
            "contiguous-without-number",
            "error",
            _NUMBER,
            "contiguous_memory_optimization needs number_checkpoints",
            f"write {needed or 'the number of blocks'}, or turn contiguous_memory_optimization off",
        )
    elif needed is not None and number < needed:
        yield Problem(
            "too-few-buffers",
            "error",
            _NUMBER,
            f"number_checkpoints ({number:g}) is less than the {needed} parts of the model that "
            "are recomputed, and DeepSpeed keeps a buffer for each",
            f"write {needed}",
        )


def host_without_partition(context: Context) -> Iterator[Problem]:
    """Device and host are one on a CPU: at best nothing happens, at worst (without partitions) the
    recomputed forward reads what was emptied (checkpointing.py:476)."""
    key = f"{_SECTION}.cpu_checkpointing"
    if context.device == "cpu" and context.get(key, False):
        yield Problem(
            "host-checkpointing-on-cpu",
            "error",
            key,
            "cpu_checkpointing moves activations from the device to the host, which are one on a "
            "CPU: DeepSpeed would copy them for nothing, or lose them",
            "turn it off where there is no GPU",
        )


def partition_alone(context: Context) -> Iterator[Problem]:
    """A script may give DeepSpeed's configure an `mpu`; a run gives it none (zero/recompute.py)."""
    shared = context.dialect != "run" and context.get("tensor_parallel.autotp_size", 0) > 1
    if context.get(_PARTITION, False) and not context.get(_CONTIGUOUS, False) and not shared:
        yield Problem(
            "partition-alone",
            _severity(context),
            _PARTITION,
            "partition_activations does nothing without tensor-parallel ranks to share the "
            "activations with, which it is not told of here",
            "leave it out, or turn contiguous_memory_optimization on, which needs it",
        )


def _severity(context: Context) -> Severity:
    """What does nothing is refused in a run, and pointed out in a script's JSON."""
    return "error" if context.dialect == "run" else "warning"


def _recomputed_parts(context: Context) -> int | None:
    """How many parts of the model a run recomputes in each forward pass."""
    if context.run is None or context.model is None:
        return None
    what = context.run.train.recompute
    return -(-context.model.num_hidden_layers // (what.every if what else 1))
