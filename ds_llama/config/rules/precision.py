"""Precision: what cannot be combined, and what DeepSpeed would get wrong in silence."""

from __future__ import annotations

from collections.abc import Iterator

from ds_llama.config.problems import Problem
from ds_llama.config.rules import Context

_NAMES = {"bf16": ("bf16", "bfloat16"), "fp16": ("fp16", "float16", "half")}


def half_at_stage_0(context: Context) -> Iterator[Problem]:
    """runtime/fp16/unfused_optimizer.py:425, fused_optimizer.py:130: a step at initialisation."""
    half = context.half_precision
    if half and context.stage == 0:
        yield Problem(
            "half-at-stage-0",
            "error",
            f"{half}.enabled",
            f"{half} at ZeRO stage 0 takes a phantom optimizer step at initialisation: Adam's step "
            "is 2 after the first update, which is then too small",
            'write "zero_optimization": {"stage": 1}; stage 0 is for fp32 and torch_autocast',
        )


def scale_that_cannot_fall(context: Context) -> Iterator[Problem]:
    """runtime/fp16/loss_scaler.py `DynamicLossScaler.update_scale` compares hysteresis with 1, and
    goes from any scale to the smallest."""
    if not context.enabled("fp16") or context.get("fp16.loss_scale", 0):
        return
    if context.get("fp16.hysteresis", 2) == 0:
        yield Problem(
            "no-hysteresis",
            "error",
            "fp16.hysteresis",
            "with hysteresis 0 the loss scale is never lowered, and every update may be skipped",
            "write 1 to lower it at every overflow, or 2, the default",
        )
    start, least = (
        context.get("fp16.initial_scale_power", 16),
        context.get("fp16.min_loss_scale", 1),
    )
    if 2.0**start < least:
        yield Problem(
            "scale-below-minimum",
            "error",
            "fp16.min_loss_scale",
            f"the loss scale begins at {2.0**start:g} (2 to the power of initial_scale_power), "
            f"below min_loss_scale ({least:g}): an overflow would raise it",
            f"write at most {2.0**start:g}, or a greater initial_scale_power",
        )


def fp16_and_bf16(context: Context) -> Iterator[Problem]:
    if context.bf16 and context.enabled("fp16"):
        yield Problem(
            "fp16-and-bf16",
            "error",
            "fp16.enabled",
            "fp16 and bf16 are both on; DeepSpeed stops at that",
            "turn one of them off",
        )


def autocast_and_half(context: Context) -> Iterator[Problem]:
    half = context.half_precision
    if half and context.enabled("torch_autocast"):
        yield Problem(
            "autocast-and-half",
            "error",
            "torch_autocast.enabled",
            f"torch_autocast and {half} are both on: the weights are {half} already, so that "
            "autocast has no fp32 weights to work from",
            f"turn {half} off to train fp32 weights under autocast, or torch_autocast off",
        )


def master_weights(context: Context) -> Iterator[Problem]:
    """runtime/base_optimizer.py:484 `_configure_master_weights`, runtime/config.py checks."""
    for half in ("bf16", "fp16"):
        key = f"{half}.{half}_master_weights_and_grads"
        if not context.get(key, False):
            continue
        if context.stage == 0:
            yield Problem(
                "master-weights-stage",
                "error",
                key,
                f"{half} master weights exist at ZeRO stages 1 to 3 only; this is stage 0",
                "take stage 1, or remove the key",
            )
        elif not context.get(f"{half}.{half}_optimizer_states", False) and (
            context.offload("offload_optimizer") is None
        ):
            more = ', or "bf16_optimizer_states": true' if half == "bf16" else ""
            yield Problem(
                "master-weights-offload",
                "error",
                key,
                f"{half} master weights with fp32 moments need the optimizer on the host "
                "(DeepSpeedCPUAdam)",
                f'write "offload_optimizer": {{"device": "cpu"}}{more}, or remove the key',
            )


def optimizer_states(context: Context) -> Iterator[Problem]:
    states = context.get("bf16.bf16_optimizer_states", False)
    if states and not context.get("bf16.bf16_master_weights_and_grads", False):
        yield Problem(
            "bf16-states-alone",
            "error",
            "bf16.bf16_optimizer_states",
            "bf16_optimizer_states needs bf16_master_weights_and_grads",
            "turn both on, or this one off",
        )


def parameter_dtype(context: Context) -> Iterator[Problem]:
    """runtime/engine.py `_assert_valid_mixed_precision_config`."""
    wanted = context.get("data_types.param_dtype")
    if wanted is None:
        return
    half = context.half_precision
    fits = _NAMES.get(half or "", ("fp32", "float32", "float"))
    if str(wanted).removeprefix("torch.") not in fits:
        yield Problem(
            "param-dtype",
            "error",
            "data_types.param_dtype",
            f"param_dtype is {wanted!r}, but the JSON trains in {half or 'fp32'}",
            f"write {fits[0]!r}, or remove the key",
        )


def accumulation_dtype(context: Context) -> Iterator[Problem]:
    """runtime/engine.py `_do_optimizer_sanity_check`: no mix of types without ZeRO. Where nothing
    is given it is the model's type (engine.py:1806); a run of ours gets fp32."""
    default = "fp32" if context.dialect == "run" else context.half_precision or "fp32"
    wanted = str(context.get("data_types.grad_accum_dtype", default)).removeprefix("torch.")
    full = wanted in ("fp32", "float32", "float")
    if not full and context.stage == 0 and not context.half_precision:
        yield Problem(
            "accumulation-dtype",
            "error",
            "data_types.grad_accum_dtype",
            f"gradients of fp32 weights cannot be added up in {wanted} at stage 0",
            'write "fp32", or remove the key',
        )
    if not full and context.half_precision and context.get("gradient_accumulation_steps", 1) > 1:
        steps = context.get("gradient_accumulation_steps", 1)
        yield Problem(
            "accumulation-in-half",
            "warning",
            "data_types.grad_accum_dtype",
            f"{steps:g} micro-batches are added up in {wanted}: bits are lost with each, and the "
            "stages differ among themselves",
            'write "fp32" (2 more bytes a parameter, divided by the world at stages 2 and 3), and '
            '"communication_data_type": "fp32"',
        )


def autocast_and_quantized(context: Context) -> Iterator[Problem]:
    """runtime/torch_autocast.py `_validate_auto_cast_settings`."""
    quantized = context.get("zero_optimization.zero_quantized_weights", False)
    if context.enabled("torch_autocast") and quantized:
        yield Problem(
            "autocast-and-quantized",
            "error",
            "zero_optimization.zero_quantized_weights",
            "torch_autocast cannot gather quantized weights",
            "turn one of them off",
        )
