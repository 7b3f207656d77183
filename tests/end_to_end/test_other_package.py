"""A model package of somebody else's, with an entry point: built, installed apart, and trained."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ds_llama.data import ShardWriter
from tests.distributed.world import ROOT, start

STEPS, TOKENS, PERIOD, LR = 4, 33, 16, 1e-2
ROW = np.random.default_rng(0).integers(0, 64, PERIOD)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the package was installed into, from its wheel, without a network."""
    folder = tmp_path_factory.mktemp("other")
    source = Path(shutil.copytree(ROOT / "tests/packages/other_lm", folder / "source"))
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    for words in (
        ["wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", folder, source],
        ["install", "--no-index", "--no-deps", "-f", folder, "-t", folder / "site", "other-lm"],
    ):
        subprocess.run([*pip, *map(str, words)], check=True, capture_output=True, timeout=120)
    return folder / "site"


@pytest.fixture(scope="module")
def trained(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes that find the package, and the folder with what they wrote.

    Windows overlap by one token, so every one of them is the same row, and a plain loop can follow
    without the sampler.
    """
    folder = tmp_path_factory.mktemp("trained")
    with ShardWriter(folder / "train", vocab_size=64) as writer:
        writer.add(np.tile(ROW, 64))
    run: dict[str, Any] = {
        "model": {"preset": "debug", "vocab_size": 64},
        "data": {"train": "train", "sequence_length": TOKENS},
        "optimizer": {"lr": LR, "weight_decay": 0.5, "schedule": "constant"},
        "train": {"steps": STEPS, "global_batch_size": 4, "micro_batch_size": 1},
        "checkpoint": {"export": False},
        "deepspeed": {"zero_optimization": {"stage": 2}, "activation_checkpointing": {}},
    }
    (folder / "run.json").write_text(json.dumps(run))
    words = ("--module", "other_lm.train", "run.json", "found.jsonl")
    code = start(2, folder, *words, PYTHONPATH=f"{site}{os.pathsep}{ROOT}")
    assert code == 0, (folder / "log.txt").read_text()[-4000:]
    return folder


@pytest.fixture
def package(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(site))
    yield importlib.import_module("other_lm")
    sys.modules.pop("other_lm")


def plain_losses(package: Any, weight_decay: float) -> list[float]:
    """A loop in torch alone, over the same rows."""
    torch.manual_seed(0)
    model = package.OtherLM()
    decayed = [p for n, p in model.named_parameters() if "norm" not in n and "bias" not in n]
    others = [p for n, p in model.named_parameters() if "norm" in n or "bias" in n]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), weight_decay=weight_decay)
    ids = torch.from_numpy(np.resize(ROW, TOKENS))[None]
    losses = []
    for _ in range(STEPS):
        loss = model(ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("stage", [2, 3])
def test_it_trains_as_a_plain_loop_does(stage: int, trained: Path, package: Any) -> None:
    rows = (trained / f"runs/stage{stage}/metrics.jsonl").read_text().splitlines()
    losses = [json.loads(row)["loss"] for row in rows]
    # fp32, whose sums over ranks and rows are taken in another order.
    assert losses == pytest.approx(plain_losses(package, 0.5), abs=1e-4)
    assert losses != pytest.approx(plain_losses(package, 0.0), abs=1e-4)


def test_its_traits_were_found(trained: Path, package: Any) -> None:
    found = [json.loads(line) for line in (trained / "found.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in found] == [2, 3]
    # Two blocks, two micro-batches a step, each block run again in the backward pass.
    assert {row["calls"] for row in found} == {2 * 2 * 2 * STEPS}
    assert all(row["decay"][0][0] == 0.5 and row["decay"][1][0] == 0.0 for row in found)
