"""Where a run stands: a few numbers, all that a resume needs besides the tensors."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from ds_llama.config.run import EarlyStoppingConfig
from ds_llama.trainer.spikes import LossWindow
from ds_llama.zero.schedule import Plateau


@dataclass
class Patience:
    """The best validation loss so far, in nats, and how many evaluations did not beat it since."""

    best: float | None = None
    best_step: int = 0
    bad_evaluations: int = 0

    def see(self, loss: float, step: int, settings: EarlyStoppingConfig) -> None:
        """Take the evaluation after `step` into account; NaN is no improvement."""
        best = math.inf if self.best is None else self.best
        if loss < best - settings.min_delta:
            self.best, self.best_step, self.bad_evaluations = loss, step, 0
        else:
            self.bad_evaluations += 1

    def exhausted(self, settings: EarlyStoppingConfig) -> str | None:
        """Why the run ends, in words; None while it goes on."""
        if self.bad_evaluations < settings.patience:
            return None
        best = "it never was a number"
        if self.best is not None:
            best = f"best {self.best:.4f} at step {self.best_step}"
        return f"no better validation loss in {self.bad_evaluations} evaluations, {best}"


@dataclass
class TrainState:
    """Progress of a run; `step` counts from 1 once the first update is made."""

    total_steps: int
    step: int = 0
    tokens_seen: int = 0
    samples_seen: int = 0
    skipped_steps: int = 0
    saved_step: int = 0
    stopped_by: int | None = None
    plateau: Plateau = field(default_factory=Plateau)
    patience: Patience = field(default_factory=Patience)
    losses: LossWindow = field(default_factory=LossWindow)
    rollbacks: list[dict[str, Any]] = field(default_factory=list)
    early_stopping: EarlyStoppingConfig | None = None

    @property
    def finished(self) -> bool:
        """Whether every step of the run has been made, or early stopping has ended it."""
        return self.step >= self.total_steps or self.ended_early is not None

    @property
    def ended_early(self) -> str | None:
        """Why the run ends before its last step, under its present `evaluation.early_stopping`."""
        if self.early_stopping is None or self.step >= self.total_steps:
            return None
        return self.patience.exhausted(self.early_stopping)

    @property
    def samples_left_out(self) -> int:
        """Of the samples seen, those that rollbacks have taken out of the run again."""
        return sum(end - first for first, end in (made["samples"] for made in self.rollbacks))

    def advance(self, tokens: int, samples: int, *, applied: bool = True) -> None:
        """Count one step of `tokens` valid tokens out of `samples` sequences."""
        self.skipped_steps += not applied
        self.step += 1
        self.tokens_seen += tokens
        self.samples_seen += samples

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        kept = asdict(self)
        del kept["stopped_by"], kept["saved_step"], kept["early_stopping"]
        return kept

    def restore(self, saved: dict[str, Any]) -> None:
        """Take the position of a checkpoint; the run's own length is kept."""
        self.step = self.saved_step = saved["step"]
        self.tokens_seen = saved["tokens_seen"]
        self.samples_seen = saved["samples_seen"]
        self.plateau = Plateau(**saved.get("plateau", {}))
        self.patience = Patience(**saved.get("patience", {}))
        self.losses = LossWindow(**saved.get("losses", {}))
        self.rollbacks = list(saved.get("rollbacks", []))
        self.skipped_steps = saved.get("skipped_steps", 0)
