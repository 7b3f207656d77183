"""A run that its validation loss steers: averaged weights, plateau schedule and early stopping."""

from __future__ import annotations

import json
import math
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from ds_llama.cli.main import main
from ds_llama.weights.folder import ModelFolder
from tests.end_to_end.conftest import Workspace

PATIENCE = 3
WHY = f"no better validation loss in {PATIENCE} evaluations"


@pytest.fixture(scope="module")
def steered(workspace: Workspace) -> tuple[str, str]:
    """Two steps, then resumed with 40 to go, of which early stopping lets two more be made."""
    run = workspace.write_run(
        "steered",
        optimizer={"schedule": "plateau", "plateau": {"patience": 0, "threshold": 0.5}},
        train={"steps": 40},
        evaluation={
            "every_steps": 1,
            "early_stopping": {"patience": PATIENCE, "min_delta": 100.0},
        },
        checkpoint={"every_steps": None},
        ema={"decay": 0.5, "evaluate": True, "export": True},
    )
    first = workspace.run("train", run, "train.steps=2", "--nproc", "2")
    second = workspace.run("train", run, "--nproc", "2", "--resume", "required")
    return first.stdout, second.stdout


def test_it_ends_early_and_says_so(workspace: Workspace, steered: tuple[str, str]) -> None:
    first, second = steered
    rows = workspace.rows("steered")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]  # the first is the best, three are not
    assert [row.get("ended_early") for row in rows] == [None, None, None, True]
    assert "finished at step 2" in first
    best = f"best {rows[0]['validation_loss']:.4f} at step 1"
    assert f"finished early ({WHY}, {best}) at step 4: 2 steps" in second
    assert "loss of the average" in second


def test_rates_are_those_of_torch(workspace: Workspace, steered: tuple[str, str]) -> None:
    """Over the resume as if there had been none; the warm-up's one evaluation does not count."""
    rows = workspace.rows("steered")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    oracle = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=0, threshold=0.5, min_lr=1e-4
    )
    assert rows[0]["lr"] == pytest.approx(5e-4)  # two steps of warm-up
    for before, row in pairwise(rows[1:]):
        oracle.step(before["validation_loss"])
        assert row["lr"] == pytest.approx(optimizer.param_groups[0]["lr"])
    assert rows[-1]["lr"] == pytest.approx(5e-4)


def test_the_average_is_evaluated_and_exported(
    workspace: Workspace, steered: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, rows = workspace.folder / "runs" / "steered", workspace.rows("steered")
    for row in rows:
        expected = math.exp(row["validation_ema_loss"])
        assert row["validation_ema_perplexity"] == pytest.approx(expected)
    assert rows[0]["validation_ema_loss"] == rows[0]["validation_loss"]  # it starts as a copy
    assert rows[-1]["validation_ema_loss"] > rows[-1]["validation_loss"]  # it lags behind

    assert main(["export", str(folder), str(folder / "offline"), "--ema"]) == 0
    assert contents(folder / "offline") == contents(folder / "export-ema")
    assert contents(folder / "offline") != contents(folder / "export")

    capsys.readouterr()
    words = ["--data", str(workspace.folder / "shards" / "validation"), "--json"]
    words += ["--batch-size", "2", "--max-batches", "2"]
    losses = {}
    for flag in ([], ["--ema"]):
        assert main(["eval", str(folder), *words, *flag]) == 0
        found = json.loads(capsys.readouterr().out)
        losses[found["ema"]] = found["loss"]
    assert losses[True] == pytest.approx(rows[-1]["validation_ema_loss"], abs=1e-5)
    assert losses[False] == pytest.approx(rows[-1]["validation_loss"], abs=1e-5)


def test_rows_are_answered_alike_by_checkpoint_and_export(
    workspace: Workspace,
    steered: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, rows = workspace.folder / "runs" / "steered", tmp_path / "rows.jsonl"
    row = {"prompt": "def load(", "choices": ["self", "fp, cls"], "answer": 1}
    rows.write_text(json.dumps(row) + "\n" + json.dumps(row | {"prompt": "import"}))
    words = ["--data", str(rows), "--tokenizer", str(workspace.folder / "tokenizer")]
    answers = []
    for source in ("checkpoints", "export"):
        out = tmp_path / source
        assert main(["eval", str(folder / source), *words, "--out", str(out)]) == 0
        assert "2 rows of" in capsys.readouterr().out
        answers.append(out.read_text())
    assert answers[0] == answers[1]
    assert all(value < 0 for value in json.loads(answers[0].splitlines()[0])["loglikelihoods"])


def contents(folder: Path) -> dict[str, Any]:
    with ModelFolder(folder) as source:
        return {name: source.read(name).tolist() for name in source.names}


def test_an_ended_run_is_not_trained_on(workspace: Workspace, steered: tuple[str, str]) -> None:
    folder = workspace.folder / "runs" / "steered"
    before = (folder / "metrics.jsonl").read_bytes()
    result = workspace.run("train", "steered.json", "--nproc", "2")
    said = f"runs/steered is finished: step-00000004 is its last step: {WHY}"
    assert said in result.stdout
    shutil.rmtree(folder / "export-ema")
    result = workspace.run("train", "steered.json", "--nproc", "2")  # the export is left to do
    assert f"finished early ({WHY}" in result.stdout
    assert (folder / "export-ema" / "model.safetensors").exists()
    assert (folder / "metrics.jsonl").read_bytes() == before
