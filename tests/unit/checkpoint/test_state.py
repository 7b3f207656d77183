from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ds_llama.checkpoint import state as states
from ds_llama.config import load_run
from ds_llama.config.optimizer import SGD, Muon
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

    lr_scheduler = None
    global_steps = global_samples = 7
    skipped_steps = 0

    def fp16_enabled(self) -> bool:
        return False

    def zero_optimization_stage(self) -> int:
        return 0


def _build(resolved: Resolved, **progress: Any) -> dict[str, Any]:
    ranks = [{"rng": {"torch": "AA"}, "layout": "[[], []]"}]
    state = states.build(Engine(), 7, progress, resolved, ranks, {"parameters": {}})
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
    content = states.Content.of(Engine(), state, [{"layout": "[[], []]"}])
    files = {name: json.loads(data) for name, data in content.files().items()}
    assert files == {
        "state.json": state,
        "layout.json": {
            "parameters": [["weight", [2, 2], True], ["bias", [2], True]],
            "partitions": [[1, []]],
            "pieces": [],
        },
    }
    assert state["groups"][0]["betas"] == [0.9, 0.999]


def test_the_trainer_cannot_write_over_what_is_ours(resolved: Resolved) -> None:
    with pytest.raises(AssertionError, match=r"state.json has its own \['stage'\]"):
        _build(resolved, stage=1)


@pytest.mark.parametrize(
    "change", [{}, {"stage": 3}, {"world_size": 4}, {"offload_optimizer": "cpu"}]
)
def test_any_layout_passes(resolved: Resolved, tmp_path: Path, change: dict[str, Any]) -> None:
    states.require_same_network(_build(resolved), replace(resolved, **change), tmp_path)


def _refused(resolved: Resolved, other: Resolved, folder: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        states.require_same_network(_build(resolved), other, folder)
    assert caught.value.where == str(folder / "state.json")
    return caught.value


def _with(resolved: Resolved, section: Any) -> Resolved:
    return replace(resolved, run=resolved.run.model_copy(update={"optimizer": section}))


def test_another_precision_is_named(resolved: Resolved, tmp_path: Path) -> None:
    error = _refused(resolved, replace(resolved, dtype="float32"), tmp_path)
    assert error.what == "the checkpoint's dtype is bfloat16, this run's float32"
    assert "export the checkpoint and start from its weights" in error.remedy
    states16 = {"enabled": True, "bf16_master_weights_and_grads": True}
    other = replace(resolved, deepspeed={**resolved.deepspeed, "bf16": states16})
    error = _refused(resolved, other, tmp_path)
    assert error.what == (
        "the checkpoint's precision of masters and moments is fp32 and fp32, this run's bf16 and "
        "fp32"
    )


def test_another_optimizer_is_named(resolved: Resolved, tmp_path: Path) -> None:
    error = _refused(resolved, _with(resolved, SGD()), tmp_path)
    assert error.what == "the checkpoint's optimizer is AdamW, this run's SGD"


def test_muon_is_taken_up_in_its_own_layout_only_below_stage_3(
    resolved: Resolved, tmp_path: Path
) -> None:
    muon = _with(resolved, Muon())
    sliced = replace(muon, stage=3)
    states.require_same_network(_build(sliced), replace(sliced, world_size=2), tmp_path)
    assert "stage 3 on 1 ranks" in _refused(muon, sliced, tmp_path).what
    states.require_same_network(_build(muon), muon, tmp_path)
    error = _refused(muon, replace(muon, world_size=2, offload_optimizer="cpu"), tmp_path)
    assert error.what == (
        "the checkpoint's layout, which Muon's momentum goes by, is stage 2 on 1 ranks with no "
        "offload, this run's stage 2 on 2 ranks with offload of optimizer on cpu"
    )


def test_another_model_is_named(resolved: Resolved, tmp_path: Path) -> None:
    other = replace(resolved, model=resolved.model.model_copy(update={"vocab_size": 128}))
    with pytest.raises(CheckpointError) as caught:
        states.require_same_network(_build(resolved), other, tmp_path)
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
    with pytest.raises(CheckpointError, match="has format 2, this version reads 3") as caught:
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
