"""Bytes of model states as the ZeRO paper counts them: Rajbhandari et al. 2020, arXiv 1910.02054.

Mixed-precision Adam takes 2 bytes of weight, 2 of gradient, and K = 12 of fp32 master and moments,
16 a parameter; section 3.1. Each stage divides one kind more among the N ranks; table 1.

What DeepSpeed really allocates is more: buckets, padding, copies that live for a moment, gathered
weights, activations. That is `planner.memory`.
"""

from __future__ import annotations

from typing import Literal

Sharded = Literal["none", "os", "os+g", "os+g+p"]
_WEIGHTS, _GRADIENTS, _OPTIMIZER = 2, 2, 12


def model_states(parameters: float, ranks: int, sharded: Sharded) -> float:
    """Bytes on each of `ranks` devices.

    sharded: what is divided: the optimizer's states (stage 1), gradients too (2), weights too (3).
    """
    divided = {
        "none": 0,
        "os": _OPTIMIZER,
        "os+g": _OPTIMIZER + _GRADIENTS,
        "os+g+p": _OPTIMIZER + _GRADIENTS + _WEIGHTS,
    }[sharded]
    whole = _WEIGHTS + _GRADIENTS + _OPTIMIZER - divided
    return parameters * (whole + divided / ranks)
