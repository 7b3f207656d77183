"""Where `ema`, which lives in the optimizer's own state, cannot be kept."""

from __future__ import annotations

from collections.abc import Iterator

from ds_llama.config.problems import Problem
from ds_llama.config.rules import Context

_OFFLOAD = "zero_optimization.offload_optimizer"
_HALF_MASTERS = ("bf16.bf16_master_weights_and_grads", "fp16.fp16_master_weights_and_grads")


def ema_place(context: Context) -> Iterator[Problem]:
    if context.run is None or context.run.ema is None:
        return
    found: dict[str, tuple[str, str]] = {}
    if context.offload("offload_optimizer") == "nvme":
        # runtime/swap_tensor/optimizer_utils.py lists the states of a partition once, and needs a
        # buffer for each: a fifth one is untested.
        found[f"{_OFFLOAD}.device"] = ("the optimizer's states are on NVMe", 'write "cpu"')
    if context.get(f"{_OFFLOAD}.super_offload"):
        reason = "SuperOffload updates the weights in a process of its own"
        found[f"{_OFFLOAD}.super_offload"] = (reason, "write false")
    if context.has("zero_optimization.zenflow"):
        reason = "ZenFlow updates weights outside the optimizer's step"
        found["zero_optimization.zenflow"] = (reason, "remove zenflow")
    for key in _HALF_MASTERS:
        if context.get(key):
            found[key] = ("there are no fp32 weights", "write false")
    for key, (reason, remedy) in found.items():
        message = f"{reason}, so ema cannot be kept"
        yield Problem("ema-place", "error", key, message, f"{remedy}, or remove the run's ema")
