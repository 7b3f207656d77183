"""Runs that several tests of the planner plan."""

from __future__ import annotations

from typing import Any

from ds_llama.config import load_run
from ds_llama.config.run import Run


def run(preset: str = "llama-7b", deepspeed: Any = "zero2", *overrides: str, **train: Any) -> Run:
    """A run of a preset; its micro batch is 4 and its global batch open unless `train` says it."""
    tree = {
        "model": {"preset": preset},
        "data": {"train": "shards/train"},
        "train": {"micro_batch_size": 4, **train},
        "deepspeed": deepspeed,
    }
    return load_run(tree, *overrides)
