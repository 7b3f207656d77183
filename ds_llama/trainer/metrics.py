"""What a row of metrics.jsonl holds, and how its times are taken.

    |<------------------------- step_s ------------------------->|
    | wait for data | forward, backward, update over the window  |
    `-- data_wait_s                  validation and saves are outside --'

Rates are over wall time from the end of one step to the end of the next, so that nothing that the
loop does between two steps is free, except validation and saves. Of saves a row says, since the row
before: checkpoint_pause_s, how long training stood still, and checkpoint_write_s, how long what was
committed took from its copy (in the background) or its beginning to its commit. `imbalance`, where
rows are of unequal work: that of the longest ranks over the mean (`data.balance`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ds_llama.config.resolve import Resolved
from ds_llama.measure import memory, pulse
from ds_llama.measure.throughput import mfu
from ds_llama.trainer.state import TrainState
from ds_llama.zero.step import StepResult


class Meter:
    """Times steps and turns their results into rows."""

    def __init__(self, resolved: Resolved, peak_flops: float | None) -> None:
        self._resolved = resolved
        self._peak_flops = peak_flops
        self._flops_per_token = resolved.model.flops_per_token(resolved.run.data.sequence_length)
        self._mark = time.perf_counter()
        self._waited = self._outside = self._paused = 0.0
        self.checkpoint_write_s = 0.0

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Time spent waiting for the loader."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextmanager
    def outside_step(self) -> Iterator[None]:
        """Time that does not belong to a step: validation and saves."""
        start = time.perf_counter()
        yield
        self._outside += time.perf_counter() - start

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Time that training stands still for a checkpoint, which does not belong to a step."""
        start = time.perf_counter()
        with pulse.within("save"), self.outside_step():
            yield
        self._paused += time.perf_counter() - start

    def saves(self) -> dict[str, float]:
        """Seconds since the last call, which is for a row that is logged: none is lost."""
        found = {
            "checkpoint_pause_s": self._paused,
            "checkpoint_write_s": self.checkpoint_write_s,
        }
        self._paused = self.checkpoint_write_s = 0.0
        return found

    def row(
        self,
        state: TrainState,
        result: StepResult,
        lr: float,
        *,
        logged: bool,
        imbalance: float | None = None,
    ) -> dict[str, Any]:
        """The row of the step that just ended; `state` has counted it already.

        What is still on the device is waited for where the row is `logged` alone, else None.
        """
        figures = (result.grad_norm, result.clip_coef) if logged else (None, None)
        seconds = self._lap()
        per_s = result.tokens / seconds
        per_device = per_s / self._resolved.world_size
        return {
            "step": state.step,
            "loss": result.loss,
            "perplexity": math.exp(min(result.loss, 700.0)),
            "lr": lr,
            "grad_norm": figures[0],
            "clip_coef": figures[1],
            "loss_scale": result.loss_scale,
            "skipped": not result.applied,
            "skipped_steps": state.skipped_steps,
            "tokens_seen": state.tokens_seen,
            "tokens_per_s": per_s,
            "tokens_per_s_per_device": per_device,
            "mfu": mfu(per_device, self._flops_per_token, self._peak_flops),
            "step_s": seconds,
            "data_wait_s": self._take_wait(),
            **({} if imbalance is None else {"imbalance": imbalance}),
            **memory.snapshot(),
        }

    def _lap(self) -> float:
        now = time.perf_counter()
        seconds = max(now - self._mark - self._outside, 1e-9)
        self._mark, self._outside = now, 0.0
        return seconds

    def _take_wait(self) -> float:
        waited, self._waited = self._waited, 0.0
        return waited
