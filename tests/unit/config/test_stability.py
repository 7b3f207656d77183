"""The section `stability`: what it says when nothing is written, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from ds_llama.config import load_run
from ds_llama.config.resolve import resolve
from ds_llama.errors import ConfigErrors

TREE: dict[str, Any] = {
    "model": {"preset": "tiny"},
    "data": {"train": "shards/train"},
    "train": {"micro_batch_size": 1, "steps": 10},
    "deepspeed": {"train_micro_batch_size_per_gpu": "auto"},
}


def refused(*overrides: str) -> dict[str, str]:
    with pytest.raises(ConfigErrors) as caught:
        resolve(load_run(TREE, *overrides), 1)
    return {error.where: error.what for error in caught.value.errors}


def test_it_is_written_out() -> None:
    run = load_run(TREE, "stability.spike={}", "checkpoint.every_steps=5")
    assert resolve(run, 1).to_json()["stability"] == {
        "nonfinite": "skip",
        "spike": {"deviations": 6.0, "window": 100, "then": "skip"},
        "max_skips": 3,
        "max_rollbacks": 3,
        "hang_timeout_s": 1200.0,
    }
    assert load_run(TREE, "stability.hang_timeout_s=null").stability.hang_timeout_s is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("nonfinite", "ignore"),
        ("spike.window", "1"),
        ("spike.deviations", "0"),
        ("hang_timeout_s", "0.5"),
        ("hang_timeout_s", "1e18"),
        ("max_skips", "0"),
    ],
)
def test_what_makes_no_sense(key: str, value: str) -> None:
    assert list(refused(f"stability.{key}={value}")) == [f"command line: stability.{key}"]


@pytest.mark.parametrize("key", ["stability.nonfinite", "stability.spike.then"])
def test_a_rollback_needs_checkpoints(key: str) -> None:
    [(where, what)] = refused(f"{key}=rollback").items()
    assert where == f"command line: {key}"
    assert what.startswith(f"{key} says to roll back, and checkpoint.every_steps is not given")
    load_run(TREE, f"{key}=rollback", "checkpoint.every_steps=5")


@pytest.mark.parametrize(
    ("override", "key", "words"),
    [
        ("stability.spike.window=10", "stability.spike.window", "before 10 updates are made, and"),
        ("checkpoint.every_steps=10", "checkpoint.every_steps", "that of step 10, and train.steps"),
        (
            "deepspeed.bf16.check_grad_overflow=false",
            "stability.nonfinite",
            "bf16.check_grad_overflow is false: a gradient that is not finite is put into the",
        ),
    ],
)
def test_what_cannot_happen_is_said(override: str, key: str, words: str) -> None:
    tree = TREE | {"deepspeed": {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}}
    fine = ["stability.nonfinite=rollback", "stability.spike.window=9", "checkpoint.every_steps=9"]
    keys = [problem.key for problem in resolve(load_run(tree, *fine), 1).problems]
    [found] = [p for p in resolve(load_run(tree, *fine, override), 1).problems if p.key not in keys]
    assert (found.key, found.severity) == (key, "warning")
    assert words in found.message
