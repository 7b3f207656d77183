"""Runs that cannot be simulated, known from their JSON; each with its reason."""

from __future__ import annotations

from typing import Any, NamedTuple

from ds_llama.config.resolve import Resolved
from ds_llama.errors import ConfigError


class _Refusal(NamedTuple):
    key: str
    why: str


_REFUSED = (
    _Refusal("zero_optimization.zenflow", "updates the optimizer in a process of its own"),
    _Refusal(
        "zero_optimization.offload_optimizer.super_offload",
        "updates the optimizer in a process of its own",
    ),
    _Refusal("compile.deepcompile", "lets a compiler decide what is gathered when"),
    _Refusal("zero_optimization.zero_quantized_weights", "packs weights in CUDA kernels"),
    _Refusal(
        "zero_optimization.zero_quantized_nontrainable_weights", "packs weights in CUDA kernels"
    ),
    _Refusal("zero_optimization.zero_quantized_gradients", "packs gradients in CUDA kernels"),
)


# Compiled or foreign optimizers of the DeepSpeed JSON that no test holds a stand-in to. Those of
# torch and of a run's `optimizer` section need none: their own Python is what runs.
_UNHELD = {
    "adagrad": "is a compiled op on the host",
    "lamb": "is a compiled op",
    "lion": "is a compiled op",
    **dict.fromkeys(("muadam", "muadamw", "musgd"), "comes from the package mup"),
}
_OWN = {"adagrad": "Adagrad", "lion": "Lion"}


def check(resolved: Resolved) -> None:
    """ConfigError that names the first key which the simulator cannot do."""
    if resolved.run.train.compile:
        raise ConfigError(
            "train.compile lets a compiler decide what is kept for backward, and its code does not "
            "run on fake tensors: that cannot be simulated",
            where=f"{resolved.run.label}:train.compile",
            remedy="`ds-llama plan` plays compiled blocks; or simulate the run with "
            "train.compile=false, of which what is kept differs",
        )
    for key, why in _REFUSED:
        if _get(resolved.deepspeed, key):
            raise ConfigError(
                f"{key} {why}, and that cannot be simulated",
                where=f"{resolved.run.deepspeed_path}:{key}",
                remedy="simulate the run without it; what it saves is then not in the numbers",
            )
    kind = str(_get(resolved.deepspeed, "optimizer.type"))
    if kind.lower() in _UNHELD:
        own = _OWN.get(kind.lower(), "AdamW")
        raise ConfigError(
            f"DeepSpeed's {kind} {_UNHELD[kind.lower()]}, and what it holds cannot be simulated",
            where=f"{resolved.run.deepspeed_path}:optimizer.type",
            remedy=f'write "optimizer": {{"type": "{own}"}} in the run instead, which needs no op',
        )


def _get(tree: Any, key: str) -> Any:
    for name in key.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree
