"""Optimizer and scheduler sections: names, required parameters, what an optimizer cannot do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ds_llama.config.keys_training import (
    OPTIMIZERS,
    SCHEDULERS,
    TORCH_OPTIMIZERS,
    TORCH_SCHEDULERS,
)
from ds_llama.config.problems import Problem, did_you_mean
from ds_llama.config.removed import REMOVED_OPTIMIZERS
from ds_llama.config.rules import Context

_NICE = ("Adam", "AdamW", "Adagrad", "Lamb", "Lion", "Muon")
_ZERO_TESTED = ("adam", "adamw", "adagrad", "lion", "muon")
_REQUIRED = {
    "WarmupDecayLR": ("total_num_steps",),
    "WarmupCosineLR": ("total_num_steps",),
    "OneCycle": ("cycle_min_lr", "cycle_max_lr"),
}


def optimizer_type(context: Context) -> Iterator[Problem]:
    if not context.has("optimizer"):
        return
    kind = context.get("optimizer.type")
    if kind is None:
        yield Problem(
            "optimizer-type",
            "error",
            "optimizer.type",
            "the optimizer has no type, and DeepSpeed then ignores the whole section",
            'write "type": "AdamW"',
        )
    elif kind.lower() in REMOVED_OPTIMIZERS:
        yield Problem(
            "optimizer-type",
            "error",
            "optimizer.type",
            f"{kind} is not in DeepSpeed 0.19 any more",
            'write "AdamW"; ZeRO++ ("zero_quantized_gradients") is what saves traffic now',
        )
    elif kind.lower() not in OPTIMIZERS and kind not in TORCH_OPTIMIZERS:
        yield Problem(
            "optimizer-type",
            "error",
            "optimizer.type",
            f"neither DeepSpeed nor torch.optim has an optimizer {kind!r}",
            _did_you_mean(kind, (*_NICE, *TORCH_OPTIMIZERS)),
        )


def _names(known: tuple[str, ...]) -> dict[str, str]:
    return {name.lower(): name for name in known}


def scheduler_type(context: Context) -> Iterator[Problem]:
    if not context.has("scheduler"):
        return
    kind = context.get("scheduler.type")
    if kind is None:
        yield Problem(
            "scheduler-type",
            "error",
            "scheduler.type",
            "the scheduler has no type, and DeepSpeed then ignores the whole section",
            'write "type": "WarmupDecayLR"',
        )
    elif kind not in SCHEDULERS and kind not in TORCH_SCHEDULERS:
        yield Problem(
            "scheduler-type",
            "error",
            "scheduler.type",
            f"neither DeepSpeed nor torch has a scheduler {kind!r}",
            _did_you_mean(kind, (*SCHEDULERS, *TORCH_SCHEDULERS)),
        )
    elif not isinstance(context.get("scheduler.params"), Mapping):
        yield Problem(
            "scheduler-params",
            "error",
            "scheduler.params",
            "the scheduler has no params, and DeepSpeed stops at that",
            f'write "params": {{{_wanted(kind)}}}',
        )
    else:
        params = context.get("scheduler.params")
        for name in _REQUIRED.get(kind, ()):
            if name not in params:
                message = f"{kind} needs {name!r}"
                remedy = f"give {name!r}"
                yield Problem(
                    "scheduler-params", "error", f"scheduler.params.{name}", message, remedy
                )


def torch_scheduler(context: Context) -> Iterator[Problem]:
    """runtime/engine.py:1893 gives it the wrapping optimizer, which is none to torch."""
    kind = context.get("scheduler.type")
    if kind not in TORCH_SCHEDULERS or kind in SCHEDULERS:
        return
    if context.stage > 0 or context.half_precision:
        where = f"ZeRO stage {context.stage}" if context.stage else str(context.half_precision)
        yield Problem(
            "torch-scheduler",
            "error",
            "scheduler.type",
            f'torch\'s {kind} stops under {where}: "DeepSpeedZeroOptimizer is not an Optimizer"',
            f"take one of {', '.join(SCHEDULERS)}, or pass lr_scheduler to deepspeed.initialize",
        )


def schedule_without_rate(context: Context) -> Iterator[Problem]:
    """runtime/lr_schedules.py:818; WarmupLR takes the optimizer's rate (:739)."""
    rate = context.get("optimizer.params.lr")
    decays = context.get("scheduler.type") == "WarmupDecayLR"
    given = context.has("scheduler.params.warmup_max_lr")
    if decays and not given and isinstance(rate, (int, float)) and rate != 1e-3:
        yield Problem(
            "schedule-without-rate",
            "error",
            "scheduler.params.warmup_max_lr",
            f"WarmupDecayLR goes to warmup_max_lr, 0.001 where it is not given, and the "
            f"optimizer's lr ({rate:g}) does nothing",
            f'write "warmup_max_lr": {rate:g}',
        )


def _wanted(kind: str) -> str:
    return ", ".join(f'"{name}": …' for name in _REQUIRED.get(kind, ()))


def scheduler_length(context: Context) -> Iterator[Problem]:
    total = context.get("scheduler.params.total_num_steps")
    steps = context.run.train.steps if context.run is not None else None
    if isinstance(total, (int, float)) and steps is not None and total != steps:
        yield Problem(
            "scheduler-length",
            "warning",
            "scheduler.params.total_num_steps",
            f"the schedule is made for {total:g} steps, the run has {steps}",
            f"write {steps}, or train.steps {total:g}",
        )


def amsgrad(context: Context) -> Iterator[Problem]:
    """ops/adam/fused_adam.py raises; torch's Adam has it."""
    params = context.get("optimizer.params", {})
    if params.get("amsgrad") and not params.get("torch_adam") and _kind(context) in _ADAMS:
        yield Problem(
            "amsgrad",
            "error",
            "optimizer.params.amsgrad",
            "DeepSpeed's Adam has no amsgrad",
            'write false, or "torch_adam": true',
        )


_ADAMS = ("adam", "adamw", "lamb")


def _kind(context: Context) -> str:
    return str(context.get("optimizer.type", "")).lower()


def betas(context: Context) -> Iterator[Problem]:
    value = context.get("optimizer.params.betas")
    if not isinstance(value, list) or _kind(context) not in OPTIMIZERS:
        return
    if len(value) != 2 or not all(0 <= beta < 1 for beta in value):
        yield Problem(
            "betas",
            "error",
            "optimizer.params.betas",
            f"betas are {value}, not two numbers from 0 to below 1",
            "write two, for instance [0.9, 0.95]",
        )


def lamb(context: Context) -> Iterator[Problem]:
    """runtime/engine.py:2022."""
    dynamic = context.enabled("fp16") and context.get("fp16.loss_scale", 0) == 0
    if _kind(context) == "lamb" and not dynamic:
        yield Problem(
            "lamb-loss-scale",
            "error",
            "optimizer.type",
            "DeepSpeed's Lamb works under fp16 with dynamic loss scaling only",
            'write "AdamW", or "fp16": {"enabled": true, "loss_scale": 0}',
        )


def untested(context: Context) -> Iterator[Problem]:
    """runtime/zero/utils.py `ZERO_SUPPORTED_OPTIMIZERS`; a run of ours sets the flag."""
    kind = _kind(context)
    allowed = context.get("zero_allow_untested_optimizer", False) or context.run is not None
    listed = kind in (*_ZERO_TESTED, *REMOVED_OPTIMIZERS)
    if kind and not listed and context.stage > 0 and not allowed:
        yield Problem(
            "untested-optimizer",
            "error",
            "optimizer.type",
            f"{context.get('optimizer.type')} is not among the optimizers that DeepSpeed tested "
            "under ZeRO, and it stops at that",
            'write "zero_allow_untested_optimizer": true',
        )


def _did_you_mean(name: str, known: tuple[str, ...]) -> str:
    """`did_you_mean` without regard to case, in the spelling that is to be written."""
    spelled = _names(known)
    remedy = did_you_mean(name, spelled)
    for lower, proper in spelled.items():
        remedy = remedy.replace(f"{lower!r}", f"{proper!r}")
    if remedy.startswith("known"):
        return f"known names: {', '.join(sorted(set(spelled.values())))}"
    return remedy
