"""A benchmark whose launches are made up: what is tested is what is made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ds_llama.bench.case import Case, parse_case
from ds_llama.bench.harness import Options, run_case
from ds_llama.config.run import Run


def measured(**keys: Any) -> dict[str, Any]:
    """What a rank writes of a cell."""
    bytes_ = {"now_bytes": 900, "peak_bytes": 1000, "now": {}, "peak": {}}
    places = {"device": bytes_, "host": bytes_, "total": bytes_}
    return {
        "start_s": 2.0,
        "phases": [{"name": name, **places} for name in ("construct", "forward", "step")],
        "traffic": {"collectives": {}, "theory": {}},
        "flops": {"model": 100, "hardware": 125},
        "step_s": [1.0, 2.0, 3.0],
        "data_wait_s": [0.01, 0.02, 0.03],
        "imbalance": [1.1, 1.2, 1.4],
        "tokens_per_step": 63,
        "joules": None,
        "joules_of": [],
        "process": {"peak_rss_bytes": 1},
        "process_at_start": {"peak_rss_bytes": 2},
        "warmup_steps": 3,
        "measure": ["counts", "parts"],
        "parts_s": {"forward": 0.5, "backward": 1.0},
        "parts_step_s": 1.5,
        "losses": [5.5, 5.0],
        "grad_norms": [2.0, 1.0],
        "matmul_flops": 1e11,
        "device": "cpu",
        "threads": 1,
        "affinity": [[0]],
    } | keys


class Launches:
    """Stands for the launcher: each launch is what `outcomes` says, measured when that is empty."""

    def __init__(self) -> None:
        self.outcomes: list[Callable[[Path, Path], int]] = []
        self.plans: list[dict[str, Any]] = []

    def __call__(self, folder: Path, ranks: int, run: Run, log: Path, timeout_s: float) -> int:
        self.plans.append(json.loads((folder / "plan.json").read_text()))
        if self.outcomes:
            return self.outcomes.pop(0)(folder, log)
        (folder / "result.json").write_text(json.dumps(measured()))
        return 0


@pytest.fixture
def launches() -> Launches:
    return Launches()


def case_of(**keys: Any) -> Case:
    sweep = {"model": "tiny", "stage": [1, 2], "precision": "fp32", "sequence_length": 64}
    return parse_case({"sweep": sweep, "steps": 3, **keys}, "case")


def run(case: Case, out: Path, launches: Launches) -> list[dict[str, Any]]:
    return run_case(case, out, launches, Options("cpu", {"commit": "abc"}))
