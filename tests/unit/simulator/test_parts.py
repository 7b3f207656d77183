"""Stand-ins, attention and gathers of the simulator beside what they are in the place of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.simulator.forks"],
        cwd=tmp_path_factory.mktemp("forks"),
        env=os.environ | {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stderr[-3000:]
    cases = json.loads(lines[0].removeprefix("FOUND "))

    def value(name: str) -> Any:
        assert "error" not in cases[name], cases[name]["error"]
        return cases[name]["value"]

    return value


def test_gathers_without_views_are_accounted_as_with_them(found: Any) -> None:
    assert found("gathered_without") == found("gathered_with_views")


def test_a_gather_that_forgets_memory_is_seen(found: Any) -> None:
    assert found("gathered_with_less") != found("gathered_with_views")


@pytest.mark.parametrize(
    ("stand_in", "real"),
    [
        ("cpu_adam_stand_in", "cpu_adam_real"),
        ("fused_adam_stand_in", "fused_adam_real"),
        ("fused_adamw_fake", "fused_adamw_real"),
        ("async_io_stand_in", "async_io_real"),
    ],
)
def test_a_stand_in_holds_what_the_real_op_does(found: Any, stand_in: str, real: str) -> None:
    assert found(stand_in) == found(real)


@pytest.mark.parametrize("real", ["cpu_adam_real", "fused_adam_real", "fused_adamw_real"])
def test_another_optimizer_is_seen(found: Any, real: str) -> None:
    assert found("another_optimizer") != found(real)


@pytest.mark.parametrize(
    ("simulated", "real", "seed_bytes"),
    [
        ("flash_on_sim", "flash_of_the_cpu", 24),  # a seed of two words, and an offset
        ("efficient_on_sim", "efficient_of_the_cpu", 16),
    ],
)
def test_attention_holds_what_the_flash_kernel_of_the_cpu_does(
    found: Any, simulated: str, real: str, seed_bytes: int
) -> None:
    """CUDA's kernels keep the state of their random numbers too, without dropout as with it."""
    forward, backward = (
        {key: on_sim[key] - on_cpu[key] for key in ("now_bytes", "peak_bytes")}
        for on_sim, on_cpu in zip(found(simulated), found(real), strict=True)
    )
    assert forward == {"now_bytes": seed_bytes, "peak_bytes": seed_bytes}
    assert backward["now_bytes"] in (0, seed_bytes)  # the peak has what the CPU's kernel copies


def test_grouped_heads_are_not_repeated(found: Any) -> None:
    """Output and log-sum-exp of 4 heads are kept, whatever the number of keys' heads."""
    kept = [found(name)[0]["now_bytes"] for name in ("flash_on_sim", "grouped_on_sim")]
    keys = 2 * 128 * 32 * 2  # batch x tokens x width x bytes, of one head
    assert kept[0] - kept[1] == 2 * 2 * keys


def test_the_math_path_is_seen(found: Any) -> None:
    scores = 2 * 4 * 128 * 128 * 2
    kept = [found(name)[0]["now_bytes"] for name in ("math_on_sim", "flash_on_sim")]
    assert kept[0] - kept[1] >= scores


@pytest.mark.parametrize("optimizer", ["sgd_on_sim", "adagrad_on_sim"])
def test_updates_in_place_need_no_memory(found: Any, optimizer: str) -> None:
    assert found(optimizer) == found("lion_on_sim")
    assert found(optimizer)["optimizer"] > 0
