"""The README's two commands, from the wheel, in an empty folder, with fewer steps and less text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()
STEPS = 4
# A dozen processes that import torch: minutes where other things run.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def place(
    unpacked_wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, str]]:
    """A folder that `ds-llama init .` has filled, and the environment of its user."""
    folder = tmp_path_factory.mktemp("user")
    # The script asks `$PYTHON` where the sources are: here a package of it, which is read faster.
    python = tmp_path_factory.mktemp("bin") / "python3"
    python.write_text(f"#!/bin/sh\necho {sysconfig.get_paths()['stdlib']}/asyncio\n")
    python.chmod(0o755)
    environment = os.environ | {
        "PYTHONPATH": str(unpacked_wheel),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DS_ACCELERATOR": "cpu",
        "PYTHON": str(python),
    }
    _run(["ds-llama", "init", "."], folder, environment)
    run = folder / "ds_configs" / "runs" / "quickstart.json"
    content = json.loads(run.read_text())
    content["train"]["steps"] = STEPS
    content["evaluation"]["max_batches"] = 1
    run.write_text(json.dumps(content))
    return folder, environment


def test_first_command_trains_evaluates_generates_and_exports(
    place: tuple[Path, dict[str, str]],
) -> None:
    folder, environment = place
    assert "bash launch/quickstart.sh\n" in README
    out = _run(["bash", "launch/quickstart.sh"], folder, environment)
    rows = (folder / "quickstart/run/metrics.jsonl").read_text().splitlines()
    assert len(rows) == STEPS
    waited = sorted(row["data_wait_s"] / row["step_s"] for row in map(json.loads, rows))
    assert waited[STEPS // 2] < 0.01
    assert json.loads((folder / "quickstart/run/deepspeed.json").read_text())["bf16"]["enabled"]
    assert (folder / "quickstart/run/export/model.safetensors").exists()
    for word in ("perplexity", "def ", f"everything is in {folder}/quickstart"):
        assert word in out

    again = _run(["bash", "launch/quickstart.sh"], folder, environment)
    assert len((folder / "quickstart/run/metrics.jsonl").read_text().splitlines()) == STEPS
    assert "perplexity" in again


def test_second_command_trains_under_zero_3(place: tuple[Path, dict[str, str]]) -> None:
    folder, environment = place
    [line] = [line for line in README.splitlines() if line.startswith(".venv/bin/ds-llama train")]
    words = line.split()
    words[0] = "ds-llama"
    words[words.index("train.steps=20")] = f"train.steps={STEPS}"
    _run(words, folder, environment)
    written = json.loads((folder / "quickstart/stage3/deepspeed.json").read_text())
    assert written["zero_optimization"]["stage"] == 3
    assert len((folder / "quickstart/stage3/metrics.jsonl").read_text().splitlines()) == STEPS


def _run(words: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout
