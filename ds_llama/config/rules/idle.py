"""Keys that are read at this stage, and do nothing because of another key."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ds_llama.config.base import shown
from ds_llama.config.deepspeed import lookup
from ds_llama.config.keys import Key, Section
from ds_llama.config.problems import Problem
from ds_llama.config.rules import Context

_ZERO = "zero_optimization"
# Sections with a switch that is off by default.
_SWITCHES = {
    **dict.fromkeys(("fp16", "bf16", "bfloat16", "torch_autocast"), "enabled"),
    **dict.fromkeys(("tensorboard", "wandb", "csv_monitor", "comet"), "enabled"),
    **dict.fromkeys(("comms_logger", "flops_profiler", "hybrid_engine"), "enabled"),
    **dict.fromkeys(("expert_parallel", "data_efficiency", "autotuning"), "enabled"),
    "compile": "deepcompile",
}
# engine.py:1129, 5876: the passes and this mode of `engine.compile` are asked for without it.
_WITHOUT_SWITCH = {"compile": ("passes", "autoep_non_moe")}


def switched_off(context: Context) -> Iterator[Problem]:
    """A switch that is not written is off (runtime/precision_config.py:46, 105 and its likes)."""
    for name, switch in _SWITCHES.items():
        section, known = context.get(name), lookup([name])
        if not isinstance(section, Mapping) or not isinstance(known, Section):
            continue
        if context.get(f"{name}.{switch}", False) or section.get(switch) == "auto":
            continue
        free = _WITHOUT_SWITCH.get(name, ())
        idle = {key: value for key, value in section.items() if key not in (switch, *free)}
        if section.get(switch) is None and (idle or not section):
            keys, act = _named(idle)
            yield Problem(
                "not-enabled",
                "error",
                name,
                f"{name} is off, and {keys} {act} nothing: {switch!r} is false where it is not "
                "written",
                f'write "{switch}": true, or remove the section',
            )
            continue
        for key, value in idle.items():
            if _given(known, key, value):
                yield Problem(
                    "disabled-value",
                    "warning",
                    f"{name}.{key}",
                    f"{key} ({shown(value)}) does nothing while {name} is off",
                    f'write "{switch}": true, or remove the key',
                )


def _named(keys: Iterable[str]) -> tuple[str, str]:
    """The keys of a section for a sentence, and its verb."""
    names = [*keys]
    return ", ".join(names) or "the section", "do" if len(names) > 1 else "does"


def _given(section: Section, key: str, value: Any) -> bool:
    """Whether a value says something that its absence would not."""
    known = section.keys.get(key)
    return isinstance(known, Key) and value is not None and value != known.default


def no_device(context: Context) -> Iterator[Problem]:
    """runtime/zero/offload_config.py:24, 63: the device is "none" unless it is written."""
    for name, stages in (("offload_optimizer", (1, 2, 3)), ("offload_param", (3,))):
        section = context.get(f"{_ZERO}.{name}")
        # super_offload without a device has an error of its own
        if context.stage not in stages or not isinstance(section, Mapping):
            continue
        if section.get("device") is None and not section.get("super_offload"):
            keys, act = _named(key for key in section if key != "device")
            yield Problem(
                "offload-without-device",
                "error",
                f"{_ZERO}.{name}",
                f'{name} names no device, and "none" is the default: {keys} {act} nothing',
                'write "device": "cpu", or remove the section',
            )


def static_scale(context: Context) -> Iterator[Problem]:
    """runtime/fp16/loss_scaler.py `CreateLossScaler`: a loss_scale above 0 is the scale."""
    scale = context.get("fp16.loss_scale", 0)
    if not context.enabled("fp16") or not scale:
        return
    section = lookup(["fp16"])
    assert isinstance(section, Section)
    for name in (
        *("initial_scale_power", "loss_scale_window", "hysteresis"),
        *("consecutive_hysteresis", "min_loss_scale"),
    ):
        value = context.get(f"fp16.{name}")
        if _given(section, name, value):
            yield _idle(
                "no-effect-static-scale",
                f"fp16.{name}",
                f"{name} ({shown(value)}) is for dynamic scaling, and loss_scale {scale:g} fixes "
                "the scale",
                'remove it, or write "loss_scale": 0',
            )


def super_offload_cores(context: Context) -> Iterator[Problem]:
    """runtime/superoffload/superoffload_stage3.py:57 is the only reader."""
    key = f"{_ZERO}.offload_optimizer.cpuadam_cores_perc"
    value = context.get(key)
    used = context.get(f"{_ZERO}.offload_optimizer.super_offload", False)
    if context.stage == 3 and value not in (None, 0.8) and not used:
        yield _idle(
            "no-effect-without-super-offload",
            key,
            f"cpuadam_cores_perc ({value:g}) is read by SuperOffload only",
            'remove it, or write "super_offload": true',
        )


def unused_parameters(context: Context) -> Iterator[Problem]:
    """stage_1_and_2.py:1934, in `complete_grad_norm_calculation_for_cpu_offload`."""
    key = f"{_ZERO}.ignore_unused_parameters"
    offloaded = context.offload("offload_optimizer") is not None
    if context.stage in (1, 2) and not context.get(key, True) and not offloaded:
        yield _idle(
            "no-effect-without-offload",
            key,
            "ignore_unused_parameters false is heeded with offload_optimizer only: unused "
            "parameters go unnoticed here",
            "remove it",
        )


def sequential_gathers(context: Context) -> Iterator[Problem]:
    """engine.py:2742-2744 sets the prefetch bucket to 1."""
    names = [f"{_ZERO}.{prefix}allgather_sequential" for prefix in ("stage3_", "")]
    if context.stage != 3 or not any(context.get(name, False) for name in names):
        return
    for name in ("stage3_prefetch_bucket_size", "prefetch_bucket_size"):
        value = context.get(f"{_ZERO}.{name}")
        if value not in (None, 1, 50_000_000):
            yield _idle(
                "no-effect-sequential",
                f"{_ZERO}.{name}",
                f"{name} ({shown(value)}) is set to 1 by stage3_allgather_sequential",
                "remove it",
            )


def profiled_operations(context: Context) -> Iterator[Problem]:
    """comm/comm.py:119: `prof_all or name in prof_ops`."""
    names = context.get("comms_logger.prof_ops")
    if context.enabled("comms_logger") and names and context.get("comms_logger.prof_all", True):
        yield _idle(
            "no-effect-prof-all",
            "comms_logger.prof_ops",
            "prof_ops chooses nothing while prof_all, which is on by default, takes every "
            "collective",
            'write "prof_all": false beside it, or remove it',
        )


def predivision(context: Context) -> Iterator[Problem]:
    """engine.py:3807-3816 and stage_1_and_2.py:1498-1508: read where scaling comes after."""
    factor = context.get("gradient_predivide_factor", 1.0)
    scatter = context.stage > 0 and context.get(f"{_ZERO}.reduce_scatter", True)
    if factor != 1 and context.get("prescale_gradients", False) and not scatter:
        yield _idle(
            "no-effect-predivide",
            "gradient_predivide_factor",
            f"gradient_predivide_factor ({factor:g}) is not read with prescale_gradients, which "
            "divides by the whole world before the reduction",
            "remove one of them",
        )


def mesh_halves(context: Context) -> Iterator[Problem]:
    """deepspeed/__init__.py:543 makes a mesh of the two together."""
    if context.has("data_parallel_size") and not context.has("sequence_parallel_size"):
        yield _idle(
            "no-effect-mesh",
            "data_parallel_size",
            "data_parallel_size is read together with sequence_parallel_size only",
            "remove it, or write both",
        )


def _idle(code: str, key: str, message: str, remedy: str) -> Problem:
    return Problem(code, "error", key, message, remedy)
