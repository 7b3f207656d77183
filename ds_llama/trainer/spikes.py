"""Whether a loss is out of line with those before it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class LossWindow:
    """The losses of the last updates, in nats, oldest first."""

    losses: list[float] = field(default_factory=list)

    def deviations(self, loss: float, window: int) -> float | None:
        """How many standard deviations `loss` lies above the mean of the last `window` losses.

        Deviations of the population, below 0 under the mean, infinite above losses that are all the
        same. None while fewer than `window` losses are known, and for a loss that is not finite.
        """
        last = self.losses[-window:]
        if len(last) < window or not math.isfinite(loss):
            return None
        # Counted from the first: a sum of equal numbers is then nothing, and not its rounding.
        beyond = [each - last[0] for each in last]
        mean = math.fsum(beyond) / window
        spread = math.sqrt(math.fsum((each - mean) ** 2 for each in beyond) / window)
        distance = loss - last[0] - mean
        if spread == 0:
            return math.copysign(math.inf, distance) if distance else 0.0
        return distance / spread

    def add(self, loss: float, window: int) -> None:
        """Take the loss of an update that was made; one that is not finite is left out."""
        if math.isfinite(loss):
            self.losses = [*self.losses[-window + 1 :], loss]
