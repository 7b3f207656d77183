"""What becomes of an update: made, skipped, the end of the run, or a rollback.

    loss of the global batch ── accepts ──> update ── settle ──> None, a rollback, or RunError
    (reduced: the same on all ranks)        or none

Every rank comes to the same decision, since each decides from numbers that all have: the reduced
loss, the losses before it, and whether DeepSpeed skipped the update, which it reduces itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ds_llama.config.run import Action, StabilityConfig
from ds_llama.errors import RunError
from ds_llama.trainer.state import TrainState
from ds_llama.zero import engine as engines
from ds_llama.zero import nonfinite
from ds_llama.zero.step import StepResult

GRADIENTS = "gradients are not finite"


@dataclass(frozen=True)
class Verdict:
    """What is done about a window, and why. `finite`: whether its loss and gradients are."""

    action: Action
    why: str
    finite: bool = False


class Guard:
    """Judges every update of a run under its `stability` section; `note` hears of skips and stops.

    DeepSpeed itself skips an update whose gradient is not finite, in every precision but at stage
    0, and goes on: a run whose weights are spoilt would skip to its last step and call itself
    finished. A dynamic loss scale is lowered at each skip for a gradient, and its end is an error
    of its own (`zero.engine.step`): those skips are not judged. It has no part in the loss, which
    is. Gradients are gone after a step, so they are looked at, for the name of the first that is
    not finite, before the update that would be the last one in patience; a good step costs nothing.
    """

    def __init__(
        self,
        engine: Any,
        state: TrainState,
        settings: StabilityConfig,
        where: str,
        note: Callable[[str, str], None] = lambda event, why: None,
    ) -> None:
        self._engine, self._state, self._settings, self._where = engine, state, settings, where
        self._note = note
        self._patient = engines.scale_is_dynamic(engine)
        self._verdict: Verdict | None = None
        self._culprit: str | None = None
        self.skipped = 0
        engines.before_update(engine, self._look)

    def accepts(self, loss: float, norm: float | None = None) -> bool:
        """Whether the update is to be made: `zero.step.take_step` asks."""
        self._verdict = self._judge(loss, norm)
        return self._verdict is None

    def settle(self, result: StepResult) -> str | None:
        """After a step: why the run has to be rolled back; None to go on. Raises RunError."""
        verdict, self._verdict = self._verdict or self._afterwards(result), None
        if verdict is None:
            if result.applied:
                self.skipped = 0
                if self._settings.spike is not None:
                    self._state.losses.add(result.loss, self._settings.spike.window)
            return None
        self.skipped += 1
        if verdict.action == "rollback":
            self.skipped = 0
            return verdict.why
        if verdict.action == "stop":
            self._stop(verdict, verdict.why)
        if self.skipped >= self._settings.max_skips:
            self._stop(verdict, f"{verdict.why}, {self.skipped} updates skipped in a row")
        if self._is_spoilt():
            self._stop(verdict, verdict.why)
        self._note("skip", verdict.why)
        return None

    def _judge(self, loss: float, norm: float | None) -> Verdict | None:
        """Before the update."""
        if not math.isfinite(loss):
            return Verdict(self._settings.nonfinite, _of_loss(loss))
        if norm is not None and not math.isfinite(norm):
            return Verdict(self._settings.nonfinite, GRADIENTS)
        spike = self._settings.spike
        if spike is None:
            return None
        distance = self._state.losses.deviations(loss, spike.window)
        if distance is None or distance <= spike.deviations:
            return None
        why = f"the loss {loss:.4f} is {distance:.1f} deviations above the last {spike.window}"
        return Verdict(spike.then, why, finite=True)

    def _afterwards(self, result: StepResult) -> Verdict | None:
        """What only the update has shown."""
        if not result.applied:
            return None if self._patient else Verdict(self._settings.nonfinite, GRADIENTS)
        if not math.isfinite(result.loss):
            return Verdict("stop", _of_loss(result.loss))
        return None

    def _look(self, engine: Any) -> None:
        last = self.skipped >= self._settings.max_skips - 1 and not self._patient
        judged = self._verdict is not None and not self._verdict.finite
        self._culprit = nonfinite.first(engine) if last or judged else None

    def _is_spoilt(self) -> bool:
        """No skip mends a weight."""
        return self._culprit is not None and self._culprit.startswith("the weight")

    def _stop(self, verdict: Verdict, what: str) -> None:
        step = self._state.step + 1
        if not verdict.finite:
            culprit = self._culprit or nonfinite.first_weight(self._engine)
            what += f": {culprit} is not finite" if culprit else ": every weight still is finite"
        self._note("stop", what)
        raise RunError(
            what,
            where=f"step {step} of {self._where}",
            remedy="lower optimizer.lr, lengthen optimizer.warmup_steps, or look at the data of "
            "these steps; resume from a checkpoint of before",
        )


def _of_loss(loss: float) -> str:
    return f"the loss is {loss}"
