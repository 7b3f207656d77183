"""DeepSpeed's launch.py without torch starts what it starts with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ds_llama.launcher import command, marks
from tests.unit.launcher.test_run import facts


@pytest.fixture(autouse=True)
def of_no_launch(ranks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(marks.FOLDER, str(ranks))


def found_by_ranks(module: str, ranks: Path) -> list[Any]:
    env = dict(os.environ)
    argv = command.local(["train", "a b"], 2, env, "one_rank")
    assert subprocess.run([*argv[:3], module, *argv[4:]], env=env, timeout=60).returncode == 0
    found = [facts(ranks, rank) for rank in (0, 1)]
    for each in found:
        each["env"] |= {"MASTER_PORT": "any"}
        each["env"].pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)  # set by importing deepspeed
    return [(each["argv"], each["env"]) for each in found]


def test_ranks_find_what_they_find_under_deepspeeds_own(ranks: Path) -> None:
    theirs = found_by_ranks("deepspeed.launcher.launch", ranks)
    assert theirs[1][1]["CROSS_SIZE"] == "1"
    assert found_by_ranks("ds_llama.launcher.node", ranks) == theirs


def test_no_torch(ranks: Path) -> None:
    argv = command.local([], 1, dict(os.environ), "one_rank")
    argv = [argv[0], "-X", "importtime", *argv[1:]]
    done = subprocess.run(argv, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "deepspeed.constants" in imported
    assert not imported & {"torch", "deepspeed", "deepspeed.utils", "deepspeed.accelerator"}


_WAKES = """
import subprocess, sys
from ds_llama.launcher import node
with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.1)"]) as process:
    node._until_a_rank_ends(3600.0)
    assert process.poll() == 0
node._until_a_rank_ends(3600.0)
"""


def test_a_rank_that_ends_wakes_it() -> None:
    """In a process of its own, which has no other children."""
    assert subprocess.run([sys.executable, "-c", _WAKES], timeout=60).returncode == 0


def test_what_becomes_of_the_ranks_is_left_as_marks(
    ranks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK_0", "sleep")
    monkeypatch.setenv("RANK_1", "exit 3")
    env = dict(os.environ)
    done = subprocess.run(command.local([], 2, env, "one_rank"), env=env, timeout=60)
    assert done.returncode == 3
    assert marks.ended(ranks) == {1: 3}  # the other was ended by launch.py, which looks no more
    assert set(marks.started(ranks)) == {0, 1}
    assert facts(ranks, 1)["pid"] == marks.started(ranks)[1]
    assert marks.unfinished(ranks, 2) == [0, 1]
