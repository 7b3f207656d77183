"""Learning rates as pure functions of the update number, so that a resume needs no state.

One shape depends on what happened: "plateau" also reads a `Plateau`, which a checkpoint keeps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ds_llama.config.optimizer import OptimizerConfig

Schedule = Callable[[int], float]
"""Updates made so far (0 before the first) -> learning rate of the next update."""


_EPS = 1e-8  # torch's default: a smaller reduction is not made


@dataclass
class Plateau:
    """Where `torch.optim.lr_scheduler.ReduceLROnPlateau` stands, in its default modes.

    scale: what the peak is multiplied with; best: smallest validation loss so far, in nats.
    """

    scale: float = 1.0
    best: float | None = None
    bad_evaluations: int = 0
    cooldown_left: int = 0

    def see(self, loss: float, section: OptimizerConfig) -> None:
        """Take the loss of an evaluation into account; NaN is no improvement."""
        settings = section.plateau_settings
        best = math.inf if self.best is None else self.best
        if loss < best * (1 - settings.threshold):
            self.best, self.bad_evaluations = loss, 0
        else:
            self.bad_evaluations += 1
        if self.cooldown_left > 0:
            self.cooldown_left -= 1
            self.bad_evaluations = 0
        if self.bad_evaluations > settings.patience:
            smaller = max(self.scale * settings.factor, section.min_lr_ratio)
            if section.lr * (self.scale - smaller) > _EPS:
                self.scale = smaller
            self.bad_evaluations, self.cooldown_left = 0, settings.cooldown


def build(section: OptimizerConfig, total_steps: int, plateau: Plateau | None = None) -> Schedule:
    """`section.schedule` over `total_steps` updates, after a linear warm-up.

    The warm-up takes `warmup_steps` updates and reaches the peak at its end; the last update of the
    run is made at `min_lr_ratio` of the peak.

        cosine      half a cosine from the peak to the minimum
        linear      a straight line from the peak to the minimum
        constant    the peak
        wsd         the peak, then a straight line over the last `decay_steps` (a tenth of the run)
        plateau     the peak times `plateau.scale`, as it is when the rate is asked for
    """
    warmup = section.warmup_steps
    seen = plateau or Plateau()
    decay = section.decay_steps or max(1, total_steps // 10)

    def lr(step: int) -> float:
        if step < warmup:
            return section.lr * (step + 1) / warmup
        if section.schedule == "plateau":
            return section.lr * seen.scale
        last = max(1, total_steps - 1 - warmup)
        factor = SHAPES[section.schedule](min(step - warmup, last), last, decay)
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
