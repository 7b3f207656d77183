"""launch/finetune.sh, line by line, with fewer rows and steps: a model of Hugging Face's goes from
chance to above 95 % on questions that it was not taught."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ds_llama.cli.main import main
from ds_llama.config import load_run
from ds_llama.data import example
from ds_llama.data.masks import open_mask
from ds_llama.data.shards import Shard
from ds_llama.evals.rows import read_rows

# Two processes that import torch, and 64 steps: minutes where other things run.
pytestmark = pytest.mark.timeout(600)

ROWS, HELD_OUT, STEPS = 1500, 120, 64


def test_from_chance_to_held_out_accuracy(
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    script = (repository / "launch/finetune.sh").read_text()
    assert "python -m ds_llama.data.example finetune\n" in script
    example.write(Path("finetune"), ROWS, HELD_OUT)
    [model] = re.findall(r"<< 'END'\n(.*?)\nEND", script, flags=re.DOTALL)
    exec(model, {})
    commands = [shlex.split(line)[1:] for line in script.splitlines() if line[:9] == "ds-llama "]
    order = ["data", "import", "data", "eval", "train", "eval", "eval"]
    assert [words[0] for words in commands] == order
    reports = []
    for words in commands:
        if words[0] == "train":
            _train(repository / words[1])
            continue
        capsys.readouterr()
        assert main([*words, *(["--json"] if words[0] == "eval" else [])]) == 0
        if words[0] == "eval":
            reports.append(json.loads(capsys.readouterr().out))
    _check_shard(Path("finetune/shards/train"))
    before, after, written = (report["acc"] for report in reports)
    assert before == pytest.approx(0.25, abs=0.15)
    assert after > 0.95
    assert written > 0.95
    assert reports[1]["rows"] == HELD_OUT


def _train(run: Path) -> None:
    words = [sys.executable, "-m", "ds_llama", "train", str(run), f"train.steps={STEPS}"]
    environment: dict[str, Any] = os.environ | {"DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def _check_shard(prefix: Path) -> None:
    """Each prompt is read and each answer, with the end of the text, learnt."""
    shard = Shard(prefix)
    mask = open_mask(shard)
    assert mask is not None
    for number in range(len(shard)):
        learnt = mask[number].tolist()
        assert learnt == sorted(learnt)
        assert 0 < sum(learnt) < len(learnt)


def test_the_task_is_the_same_each_time_and_nothing_is_in_both_files(tmp_path: Path) -> None:
    one, other = (example.write(tmp_path / name, 300, 100) for name in ("a", "b"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]
    train, held_out = (read_rows(path) for path in one)
    assert not {row.prompt for row in train} & {row.prompt for row in held_out}
    assert {row.choices for row in train + held_out} == {tuple(example.KINDS)}
    share = sum(row.gold == 0 for row in train) / len(train)
    assert share == pytest.approx(0.25, abs=0.1)


def test_the_run_is_what_the_script_makes(repository: Path) -> None:
    run = load_run(repository / "ds_configs/runs/finetune.json")
    script = (repository / "launch/finetune.sh").read_text()
    assert f"--out {Path(run.data.train).parent}\n" in script
    assert f" {run.model.pretrained} --tokenizer {run.data.tokenizer}\n" in script
    assert f"ds-llama eval {run.output} " in script
