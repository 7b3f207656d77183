"""EleutherAI's lm-evaluation-harness on an exported folder, when it is installed."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ds_llama.errors import MachineError, RunError


def require_harness() -> None:
    """Raises MachineError where `lm_eval` cannot be imported."""
    if importlib.util.find_spec("lm_eval") is None:
        raise MachineError(
            "lm-eval is not installed",
            where="--lm-eval",
            remedy="pip install 'lm-eval[hf]', or score rows of your own with --data FILE.jsonl",
        )


def run_harness(
    folder: Path, tasks: Sequence[str], *, batch_size: int, limit: int | None, device: str
) -> dict[str, dict[str, Any]]:
    """Its results, {task: {metric: value}}; what it prints goes to stderr.

    folder: an export, which it reads by transformers. limit: rows of a task, all when None. Raises
    MachineError where it is not installed, RunError for whatever ends it.
    """
    require_harness()
    harness = importlib.import_module("lm_eval")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found = harness.simple_evaluate(
                model="hf",
                model_args={"pretrained": str(folder)},
                tasks=list(tasks),
                batch_size=batch_size,
                limit=limit,
                device=device,
                log_samples=False,
            )
    except Exception as error:
        raise RunError(
            f"lm-eval failed ({type(error).__name__}: {error})",
            where=f"--lm-eval {','.join(tasks)}",
            remedy="`lm-eval ls tasks` lists the names; --debug prints a traceback",
        ) from error
    results: dict[str, dict[str, Any]] = found["results"]
    return results
