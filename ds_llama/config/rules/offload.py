"""Offload to host and NVMe."""

from __future__ import annotations

from collections.abc import Iterator

from ds_llama.config.base import shown
from ds_llama.config.keys import Key
from ds_llama.config.keys_zero import OFFLOAD_OPTIMIZER, OFFLOAD_PARAM
from ds_llama.config.problems import Problem
from ds_llama.config.rules import Context

_SECTIONS = {"offload_optimizer": OFFLOAD_OPTIMIZER, "offload_param": OFFLOAD_PARAM}
_PIPELINE = ("pipeline_read", "pipeline_write", "fast_init")
_NVME_ONLY = {
    "offload_optimizer": ("nvme_path", "buffer_count", *_PIPELINE),
    "offload_param": ("nvme_path", "buffer_count", "buffer_size", "max_in_cpu"),
}


def nvme_path(context: Context) -> Iterator[Problem]:
    for name in _SECTIONS:
        key = f"zero_optimization.{name}.nvme_path"
        if context.offload(name) == "nvme" and not context.get(key):
            yield Problem(
                "nvme-without-path",
                "error",
                key,
                f"{name} goes to NVMe, and nvme_path does not say where",
                'write "nvme_path": a folder on a local NVMe disk',
            )


def nvme_below_stage_3(context: Context) -> Iterator[Problem]:
    """Stages 1 and 2 know only whether there is an offload (stage_1_and_2.py:220)."""
    if context.stage in (1, 2) and context.offload("offload_optimizer") == "nvme":
        yield Problem(
            "nvme-below-stage-3",
            "error",
            "zero_optimization.offload_optimizer.device",
            f"nothing goes to NVMe at ZeRO stage {context.stage}: the optimizer stays in host "
            "memory",
            'take stage 3, or write "device": "cpu"',
        )


def unsaved_checkpoints(context: Context) -> Iterator[Problem]:
    every = context.run.checkpoint.every_steps if context.run is not None else None
    for key, what in context.unsaved.items() if every is not None else ():
        yield Problem(
            "unsaved-checkpoints",
            "error",
            key,
            f"checkpoint.every_steps is {every}, and DeepSpeed cannot resume {what}",
            "remove checkpoint.every_steps (the weights are exported at the end), or offload "
            "to the host without it",
        )


def nvme_keys(context: Context) -> Iterator[Problem]:
    for name, keys in _NVME_ONLY.items():
        device = context.offload(name)
        if device != "cpu":
            continue
        for inner in keys:
            key = f"zero_optimization.{name}.{inner}"
            known = _SECTIONS[name].keys[inner]
            value = context.get(key)
            if value is not None and isinstance(known, Key) and value != known.default:
                yield Problem(
                    "no-effect-without-nvme",
                    "error",
                    key,
                    f"{inner} ({shown(value)}) does nothing when {name} goes to the host",
                    'remove it, or write "device": "nvme"',
                )


def aio(context: Context) -> Iterator[Problem]:
    used = "nvme" in (context.offload("offload_optimizer"), context.offload("offload_param"))
    if context.has("aio") and not used and not context.has("checkpoint.writer"):
        yield Problem(
            "no-effect-without-nvme",
            "error",
            "aio",
            "the aio section does nothing without offload to NVMe",
            "remove it",
        )


def pinned_without_gpu(context: Context) -> Iterator[Problem]:
    for name in _SECTIONS:
        key = f"zero_optimization.{name}.pin_memory"
        if context.device == "cpu" and context.offload(name) and context.get(key, False):
            yield Problem(
                "pinned-without-gpu",
                "warning",
                key,
                "pinned memory is for copies to a GPU; on a CPU DeepSpeed first compiles an op for "
                "it, which takes minutes",
                "write false, or leave it out",
            )
