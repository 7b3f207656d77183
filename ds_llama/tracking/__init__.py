"""Where a run's rows go: console, metrics.jsonl, Weights & Biases, TensorBoard."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ds_llama.tracking.base import Row, Tracker
from ds_llama.tracking.guard import Guarded

if TYPE_CHECKING:
    from ds_llama.config.run import Run

__all__ = ["Row", "Tracker", "open_trackers"]


def open_trackers(
    run: Run, output: Path, *, total_steps: int, start_step: int = 0, goes_on: bool = False
) -> list[Tracker]:
    """The trackers that `run.tracking` asks for, started. To be called on rank 0 alone.

    `start_step` is the step that a resumed run has reached: rows later than it are made again.
    `goes_on`: there are steps after it, so its row has nothing of what only the end of a run has.
    metrics.jsonl is always written, and first; when it cannot be, RunError. Any other tracker
    that breaks later is dropped with one warning. Raises MachineError for one that cannot work
    at all: TensorBoard that is not installed, W&B that is to be online without a login.
    """
    trackers: list[Tracker] = [
        Guarded(tracker) for tracker in _wanted(run, total_steps, start_step, goes_on)
    ]
    resolved = _resolved(run, output)
    started: list[Tracker] = []
    try:
        for tracker in trackers:
            tracker.start(resolved, output)
            started.append(tracker)
    except BaseException:
        for tracker in started:
            tracker.close("failed")
        raise
    return trackers


def _wanted(run: Run, total_steps: int, start_step: int, goes_on: bool) -> list[Tracker]:
    from ds_llama.tracking.jsonl import JsonlTracker

    amend = partial(_on_the_way, run) if goes_on else None
    trackers: list[Tracker] = [JsonlTracker(start_step, amend)]
    if run.tracking.wandb is not None:
        from ds_llama.tracking.wandb import WandbTracker

        trackers.append(WandbTracker(run.tracking.wandb))
    if run.tracking.tensorboard:
        from ds_llama.tracking.tensorboard import TensorBoardTracker

        trackers.append(TensorBoardTracker(start_step))
    if run.tracking.console:
        from ds_llama.tracking.console import ConsoleTracker

        # last: its live display is not to be torn by what the others announce
        trackers.append(ConsoleTracker(total_steps, start_step))
    return trackers


def _on_the_way(run: Run, row: Row) -> Row | None:
    """The row as a run that goes on after it writes it; None where it writes none."""
    every = run.evaluation.every_steps
    last = {key for key in row if key == "ended_early"}
    if not every or row["step"] % every:
        last |= {key for key in row if key.startswith("validation_")}
    kept = {key: value for key, value in row.items() if key not in last}
    if "nonfinite" in row:
        kept["nonfinite"] = {k: v for k, v in row["nonfinite"].items() if k not in last}
        if not kept["nonfinite"]:
            del kept["nonfinite"]
    logged = row["step"] % run.train.log_every_steps == 0 or "validation_loss" in kept
    return kept if logged else None


def _resolved(run: Run, output: Path) -> dict[str, Any]:
    """OUTPUT/run.json, which has every effective value, where it is written already."""
    try:
        found = json.loads((output / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    return found if isinstance(found, dict) else run.model_dump(mode="json")
