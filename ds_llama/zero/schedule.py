"""Learning rates as pure functions of the update number, so that a resume needs no state."""

from __future__ import annotations

import math
from collections.abc import Callable

from ds_llama.config.optimizer import OptimizerConfig

Schedule = Callable[[int], float]
"""Updates made so far (0 before the first) -> learning rate of the next update."""


def build(section: OptimizerConfig, total_steps: int) -> Schedule:
    """`section.schedule` over `total_steps` updates, after a linear warm-up.

    The warm-up takes `warmup_steps` updates and reaches the peak at its end; the last update of the
    run is made at `min_lr_ratio` of the peak.

        cosine      half a cosine from the peak to the minimum
        linear      a straight line from the peak to the minimum
        constant    the peak
        wsd         the peak, then a straight line over the last `decay_steps` (a tenth of the run)
    """
    shape = SHAPES[section.schedule]
    warmup = section.warmup_steps
    decay = section.decay_steps or max(1, total_steps // 10)

    def lr(step: int) -> float:
        if step < warmup:
            return section.lr * (step + 1) / warmup
        last = max(1, total_steps - 1 - warmup)
        factor = shape(min(step - warmup, last), last, decay)
        return section.lr * (section.min_lr_ratio + (1 - section.min_lr_ratio) * factor)

    return lr


def _cosine(step: int, last: int, decay: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * step / last))


def _linear(step: int, last: int, decay: int) -> float:
    return 1 - step / last


def _constant(step: int, last: int, decay: int) -> float:
    return 1.0


def _wsd(step: int, last: int, decay: int) -> float:
    return min(1.0, (last - step) / decay)


SHAPES: dict[str, Callable[[int, int, int], float]] = {
    "cosine": _cosine,
    "linear": _linear,
    "constant": _constant,
    "wsd": _wsd,
}
