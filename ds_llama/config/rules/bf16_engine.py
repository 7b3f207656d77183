"""bf16 at ZeRO stage 1 with fp32 sums: another optimizer class, which knows fewer keys.

engine.py:2305 takes BF16_Optimizer there, unless the optimizer is offloaded. Its constructor
(engine.py:2620) is given `allgather_bucket_size` and none of the other buckets and switches.
"""

from __future__ import annotations

from collections.abc import Iterator

from ds_llama.config.base import shown
from ds_llama.config.keys import Key
from ds_llama.config.keys_zero import ZERO
from ds_llama.config.problems import Problem
from ds_llama.config.rules import Context

_ZERO = "zero_optimization"
# reduce_bucket_size is not given either; the deepspeed.json of a run has it at every stage.
_NOT_GIVEN = (
    *("contiguous_gradients", "reduce_scatter", "overlap_comm"),
    *("use_multi_rank_bucket_allreduce", "round_robin_gradients", "parameter_alignment"),
    *("ignore_unused_parameters", "elastic_checkpoint"),
)
_FULL = ("fp32", "float32", "float")


def _taken(context: Context) -> bool:
    sums = str(context.get("data_types.grad_accum_dtype", "")).removeprefix("torch.")
    offloaded = context.offload("offload_optimizer") is not None
    return context.bf16 and context.stage == 1 and sums in _FULL and not offloaded


def not_given(context: Context) -> Iterator[Problem]:
    if not _taken(context):
        return
    for name in _NOT_GIVEN:
        known, value = ZERO.keys[name], context.get(f"{_ZERO}.{name}")
        # Below stage 3 a null overlap_comm is false (runtime/zero/config.py `overlap_comm_valid`).
        default = (known.default or False) if isinstance(known, Key) else False
        if value is not None and value != default:
            yield Problem(
                "no-effect-bf16-optimizer",
                "error",
                f"{_ZERO}.{name}",
                f"{name} ({shown(value)}) does nothing at stage 1 in bf16 with fp32 sums, where "
                "DeepSpeed's BF16_Optimizer is not told of it",
                "remove it, or take stage 2",
            )


def only_there(context: Context) -> Iterator[Problem]:
    """bf16_optimizer.py:81 is the only reader; pipe/engine.py:861 with a pipeline."""
    key = "bf16.immediate_grad_update"
    used = _taken(context) or context.get("pipeline.stages", 1) > 1
    if context.bf16 and context.get(key, False) and not used:
        yield Problem(
            "no-effect-bf16-update",
            "error",
            key,
            "immediate_grad_update is read at ZeRO stage 1 with fp32 sums and without offload only",
            'remove it, or write "data_types": {"grad_accum_dtype": "fp32"} at stage 1',
        )


def overflow_check(context: Context) -> Iterator[Problem]:
    """stage_1_and_2.py:3029 is the only reader; stage 3 always checks."""
    key = "bf16.check_grad_overflow"
    if not context.bf16 or context.get(key, True):
        return
    if context.stage not in (1, 2) or _taken(context):
        why = "at stage 1 with fp32 sums" if _taken(context) else f"at ZeRO stage {context.stage}"
        yield Problem(
            "no-effect-overflow-check",
            "error",
            key,
            f"check_grad_overflow false is not read {why}",
            "remove it, or take stage 2",
        )


def gradient_norm_there(context: Context) -> Iterator[Problem]:
    """engine.py:2307 raises."""
    if _taken(context) and not context.get(f"{_ZERO}.compute_grad_norm", True):
        yield Problem(
            "bf16-optimizer-norm",
            "error",
            f"{_ZERO}.compute_grad_norm",
            "compute_grad_norm false does not go with stage 1 in bf16 with fp32 sums",
            "remove the key, or take stage 2",
        )
