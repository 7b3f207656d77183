"""ZeRO++, SuperOffload, ZenFlow, Twin-Flow, DeepCompile: what each of them needs."""

from __future__ import annotations

from collections.abc import Iterator

from ds_llama.config.base import shown
from ds_llama.config.problems import Problem
from ds_llama.config.rules import Context

_ZERO = "zero_optimization"
_QUANTIZER = "DeepSpeed has no quantizer for CPU (ops/op_builder/cpu)"
# Why each of these stops, or does nothing, where there is no CUDA device.
_CUDA_ONLY = {
    f"{_ZERO}.zero_quantized_weights": _QUANTIZER,
    f"{_ZERO}.zero_quantized_nontrainable_weights": _QUANTIZER,
    f"{_ZERO}.zero_quantized_gradients": _QUANTIZER,
    # superoffload_stage3.py:19
    f"{_ZERO}.offload_optimizer.super_offload": "DeepSpeed asserts a CUDA device",
    # zenflow/engine_stage3.py:192; stages 1 and 2 have an error of their own
    f"{_ZERO}.zenflow": 'DeepSpeed allocates on "cuda" by name',
    # compile/util.py `is_deepcompile_supported`
    "compile.deepcompile": "its passes are compiled for CUDA",
    "aio.use_gds": "GPUDirect Storage reads into a GPU's memory",
}


def needs_gpu(context: Context) -> Iterator[Problem]:
    for key, reason in _CUDA_ONLY.items():
        if context.device != "cpu" or not context.get(key, False):
            continue
        if key != f"{_ZERO}.zenflow" or (context.stage == 3 and context.run is None):
            yield Problem(
                "needs-gpu",
                "error",
                key,
                f"{key.rsplit('.', 1)[-1]} does not run on a CPU: {reason}",
                "remove it, or train on a CUDA device",
            )


def super_offload(context: Context) -> Iterator[Problem]:
    key = f"{_ZERO}.offload_optimizer.super_offload"
    if context.get(key, False) and context.offload("offload_optimizer") != "cpu":
        yield Problem(
            "super-offload-device",
            "error",
            key,
            'super_offload needs "device": "cpu"',
            'write "device": "cpu", or remove the key',
        )


def zenflow_scrambles(context: Context) -> Iterator[Problem]:
    """It flattens matrices transposed (zenflow_utils.py:33) and views the flat buffer as if it had
    not (stage_1_and_2.py:894): every matrix is scrambled before the first step."""
    if context.stage in (1, 2) and context.has(f"{_ZERO}.zenflow"):
        yield Problem(
            "zenflow-scrambles-weights",
            "error",
            f"{_ZERO}.zenflow",
            f"ZenFlow at ZeRO stage {context.stage} scrambles the weights of every matrix when "
            "DeepSpeed 0.19.8 registers the model",
            "take stage 3, or remove zenflow",
        )


def zenflow_in_a_run(context: Context) -> Iterator[Problem]:
    """zenflow/engine_stage3.py:85 transposes every matrix for good, which partitioned parameters
    (`zero.Init`) do not survive and an export would not undo."""
    if context.run is not None and context.stage == 3 and context.has(f"{_ZERO}.zenflow"):
        yield Problem(
            "zenflow-in-a-run",
            "error",
            f"{_ZERO}.zenflow",
            "ZenFlow keeps every matrix transposed and does not go with zero.Init, by which "
            "`ds-llama train` constructs the model at stage 3",
            "remove zenflow, or use the JSON in a script that constructs the model without "
            "zero.Init on a CUDA device",
        )


def zenflow(context: Context) -> Iterator[Problem]:
    """zenflow_stage_1_and_2.py:116 and runtime/zenflow/engine.py."""
    path = "zero_optimization.zenflow"
    if context.stage != 3 or not context.has(path):
        return
    if context.offload("offload_optimizer") != "cpu":
        yield Problem(
            "zenflow-offload",
            "error",
            path,
            "ZenFlow works on an optimizer that is offloaded to the host",
            'write "offload_optimizer": {"device": "cpu"}',
        )
    strategy = context.get(f"{path}.select_strategy", "auto")
    interval = context.get(f"{path}.select_interval")
    if strategy == "auto" and interval is not None:
        yield Problem(
            "zenflow-interval",
            "error",
            f"{path}.select_interval",
            f"select_interval ({shown(interval)}) is overwritten under the strategy 'auto'",
            'remove it, or write "select_strategy": "step"',
        )
    if strategy != "auto" and interval is None:
        yield Problem(
            "zenflow-interval",
            "error",
            f"{path}.select_interval",
            f"the strategy {strategy!r} needs a number as select_interval",
            'write a number, or "select_strategy": "auto"',
        )
    update = context.get(f"{path}.update_interval")
    if interval is not None and update is not None and interval < update:
        yield Problem(
            "zenflow-interval",
            "error",
            f"{path}.select_interval",
            f"select_interval ({interval}) is below update_interval ({update})",
            f"write at least {update}",
        )


def deepcompile(context: Context) -> Iterator[Problem]:
    """engine.py:5805 falls back to the plain compiler, and says so at log level info."""
    key = "compile.deepcompile"
    if not context.get(key, False):
        return
    if context.stage == 0:
        yield Problem(
            "deepcompile-stage",
            "error",
            key,
            "DeepCompile does nothing at ZeRO stage 0",
            "take stage 1, 2 or 3, or remove the key",
        )
    asked = context.run is not None and context.run.train.recompute is not None
    if context.dialect == "run" and (asked or context.has("activation_checkpointing")):
        yield Problem(
            "deepcompile-recompute",
            "error",
            key,
            "deepspeed.checkpointing breaks the graph at every block, and DeepCompile's passes "
            "see only pieces",
            "remove activation_checkpointing, or DeepCompile",
        )
