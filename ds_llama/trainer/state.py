"""Where a run stands: a few integers, all that a resume needs besides the tensors."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class TrainState:
    """Progress of a run; `step` counts from 1 once the first update is made."""

    total_steps: int
    step: int = 0
    tokens_seen: int = 0
    samples_seen: int = 0
    saved_step: int = 0
    stopped_by: int | None = None

    @property
    def finished(self) -> bool:
        """Whether every step of the run has been made."""
        return self.step >= self.total_steps

    def advance(self, tokens: int, samples: int) -> None:
        """Count one step of `tokens` valid tokens out of `samples` sequences."""
        self.step += 1
        self.tokens_seen += tokens
        self.samples_seen += samples

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        kept = asdict(self)
        del kept["stopped_by"], kept["saved_step"]
        return kept

    def restore(self, saved: dict[str, Any]) -> None:
        """Take the position of a checkpoint; the run's own length is kept."""
        self.step = self.saved_step = saved["step"]
        self.tokens_seen = saved["tokens_seen"]
        self.samples_seen = saved["samples_seen"]
