"""Strategies that need CUDA, trained on every device there is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.strategies import REFUSED

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]


@pytest.mark.parametrize("name", REFUSED)
def test_trains(name: str, tmp_path: Path, repository: Path) -> None:
    runner = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", os.devnull]
    done = subprocess.run(
        [*runner, "--module", "tests.gpu.rank", str(tmp_path), name],
        cwd=repository,
        env=os.environ | {"PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    losses = json.loads((tmp_path / "losses.json").read_text())
    assert losses[-1] < losses[0] - 0.05, losses
