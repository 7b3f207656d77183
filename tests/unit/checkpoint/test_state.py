from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ds_llama.checkpoint import state as states
from ds_llama.config import load_run
from ds_llama.config.optimizer import SGD, AdamW
from ds_llama.config.resolve import Resolved, resolve
from ds_llama.errors import CheckpointError
from ds_llama.zero.pieces import pieces


@pytest.fixture(scope="module")
def resolved() -> Resolved:
    run = load_run(
        {
            "model": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1},
            "data": {"train": "unused", "sequence_length": 16},
            "optimizer": {"lr": 1e-3},
            "train": {"steps": 4, "micro_batch_size": 1},
            "deepspeed": {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}},
        },
        "model.intermediate_size=64",
        "model.num_attention_heads=4",
    )
    return resolve(run, 1, device="cpu")


class Engine:
    """What `build` reads of an engine before the first update."""

    def __init__(self) -> None:
        self.module = torch.nn.Linear(2, 2)
        self.optimizer = torch.optim.AdamW(self.module.parameters())

    def fp16_enabled(self) -> bool:
        return False

    def zero_optimization_stage(self) -> int:
        return 0


def _build(resolved: Resolved, **progress: Any) -> dict[str, Any]:
    state = states.build(Engine(), 7, progress, resolved, [{"torch": "AA"}], {"parameters": {}})
    return dict(json.loads(json.dumps(state)))


def test_a_step_folder_says_everything_about_itself(resolved: Resolved) -> None:
    state = _build(resolved, tokens_seen=70, samples_seen=7)
    assert states.progress(state) == {"step": 7, "tokens_seen": 70, "samples_seen": 7}
    assert (state["stage"], state["world_size"], state["dtype"]) == (2, 1, "bfloat16")
    assert state["model"]["hidden_size"] == 32
    assert state["run"]["deepspeed"] == resolved.deepspeed
    assert len(state["deepspeed_sha256"]) == 64
    assert state["versions"].keys() >= {"ds_llama", "torch", "deepspeed", "python"}
    assert state["ranks"] == [{"rng": {"torch": "AA"}}]
    assert state["optimizer_step"] is None


def test_the_trainer_cannot_write_over_what_is_ours(resolved: Resolved) -> None:
    with pytest.raises(AssertionError, match=r"state.json has its own \['stage'\]"):
        _build(resolved, stage=1)


def test_the_same_layout_passes(resolved: Resolved, tmp_path: Path) -> None:
    states.require_same_layout(_build(resolved), resolved, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage": 3}, "the checkpoint has stage 2, this run stage 3"),
        ({"world_size": 4}, "the checkpoint has world_size 1, this run world_size 4"),
        ({"dtype": "float32"}, "the checkpoint has dtype bfloat16, this run dtype float32"),
        (
            {"offload_optimizer": "cpu", "offload_param": "nvme"},
            "the checkpoint has no offload, this run offload of optimizer on cpu and parameters "
            "on nvme",
        ),
    ],
)
def test_another_layout_is_named_with_both_values(
    resolved: Resolved, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        states.require_same_layout(_build(resolved), replace(resolved, **change), tmp_path)
    assert caught.value.what == message
    assert caught.value.where == str(tmp_path / "state.json")
    assert "export the checkpoint and start from its weights" in caught.value.remedy


def test_another_optimizer_is_named(resolved: Resolved, tmp_path: Path) -> None:
    rows = ({"parameters": ["*norm*"]},)
    for section, words in (
        (SGD(), "AdamW with 0 rows of groups, this run's SGD with 0 rows of groups"),
        (AdamW(groups=rows), "AdamW with 0 rows of groups, this run's AdamW with 1 rows of groups"),
    ):
        other = replace(resolved, run=resolved.run.model_copy(update={"optimizer": section}))
        with pytest.raises(CheckpointError) as caught:
            states.require_same_layout(_build(resolved), other, tmp_path)
        assert caught.value.what == f"the checkpoint's optimizer is {words}"
        assert "run with the checkpoint's optimizer" in caught.value.remedy


def test_another_model_is_named(resolved: Resolved, tmp_path: Path) -> None:
    other = replace(resolved, model=resolved.model.model_copy(update={"vocab_size": 128}))
    with pytest.raises(CheckpointError) as caught:
        states.require_same_layout(_build(resolved), other, tmp_path)
    assert caught.value.what == "the checkpoint's model has vocab_size 64, this run's 128"
    assert "another output folder" in caught.value.remedy


def test_a_state_that_cannot_be_read(tmp_path: Path) -> None:
    for content in (None, "{", "[]", "{}"):
        if content is not None:
            (tmp_path / "state.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"state\.json cannot be read") as caught:
            states.read(tmp_path)
        assert "checkpoint list" in caught.value.remedy
    (tmp_path / "state.json").write_text('{"format": 2}')
    with pytest.raises(CheckpointError, match="has format 2, this version reads up to 1") as caught:
        states.read(tmp_path)
    assert "version of ds_llama" in caught.value.remedy


def test_pieces_at_stage_0_are_weights_and_moments() -> None:
    engine = Engine()
    assert [(p.name, p.kind) for p in pieces(engine)] == [("weight", "weight"), ("bias", "weight")]
    engine.module(torch.ones(1, 2)).sum().backward()
    engine.optimizer.step()
    assert [(p.kind, p.start, p.flat.numel(), p.replicated) for p in pieces(engine)] == [
        (kind, 0, size, True) for size in (4, 2) for kind in ("weight", "exp_avg", "exp_avg_sq")
    ]
