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


def super_offload(context: Context) -> Iterator[Problem]:
    key = "zero_optimization.offload_optimizer.super_offload"
    if context.get(key, False) and context.offload("offload_optimizer") != "cpu":
        yield Problem(
            "super-offload-device",
            "error",
            key,
            'super_offload needs "device": "cpu"',
            'write "device": "cpu", or remove the key',
        )


def zenflow(context: Context) -> Iterator[Problem]:
    """zenflow_stage_1_and_2.py:116 and runtime/zenflow/engine.py."""
    path = "zero_optimization.zenflow"
    if context.stage == 0 or not context.has(path):
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


def needs_gpu(context: Context) -> Iterator[Problem]:
    """Features whose ops exist for CUDA only (ops/op_builder/cpu has none of them)."""
    keys = (
        "zero_optimization.zero_quantized_weights",
        "zero_optimization.zero_quantized_nontrainable_weights",
        "zero_optimization.zero_quantized_gradients",
        "zero_optimization.offload_optimizer.super_offload",
        "compile.deepcompile",
        "aio.use_gds",
    )
    for key in keys:
        if context.device == "cpu" and context.get(key, False):
            yield Problem(
                "needs-gpu",
                "error",
                key,
                f"{key.rsplit('.', 1)[-1]} has no implementation for CPU",
                "remove it, or train on a CUDA device",
            )
