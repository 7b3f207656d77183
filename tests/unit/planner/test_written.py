"""`--write`: the file means to `train`, to lint and to DeepSpeed what was planned."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

import ds_llama as dl
from ds_llama.config import shipped
from ds_llama.config.deepspeed import check
from ds_llama.config.lint import Linter
from ds_llama.config.resolve import resolve
from ds_llama.errors import CallError
from ds_llama.planner import strategies, written
from tests.unit.planner.runs import run

STRATEGIES = [n for n in shipped.names() if n != "zero3_zenflow"]


@pytest.mark.parametrize("train", [{}, {"global_batch_size": 64}], ids=["one", "accumulated"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_row_comes_back_as_it_was_planned(
    name: str, train: dict[str, Any], tmp_path: Path
) -> None:
    found, _ = strategies.candidates(run("llama-7b", name, **train), 8, nvme=True)
    for each in found:
        path = tmp_path / "ds.json"
        path.write_text(json.dumps(written.deepspeed_json(each)))
        problems = {problem.code for problem in Linter().report(path).problems}
        true = {"checkpointing-not-called"} if each.recompute else set()
        if each.resolved.deepspeed.get("bf16", {}).get("bf16_master_weights_and_grads"):
            true |= {"accumulation-in-half"}  # it has no other
        assert problems <= true
        again = resolve(run("llama-7b", str(path), **train), 8)
        assert again.deepspeed == each.resolved.deepspeed
        assert again.run.train == each.resolved.run.train


def test_auto_is_written_as_the_number_that_it_became(tmp_path: Path) -> None:
    given = {
        "bf16": {"enabled": "auto"},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"},
    }
    found, _ = strategies.candidates(run("llama-7b", given), 8)
    for each in found:
        tree = written.deepspeed_json(each)
        assert "auto" not in json.dumps(tree)
        assert "train_batch_size" not in tree  # it would hold at one world size only
        assert tree["bf16"] == {"enabled": each.resolved.stage > 0}
        assert tree["train_micro_batch_size_per_gpu"] == 4


def test_defaults_that_have_changed_are_written() -> None:
    """A JSON that says little becomes one that means the same to any release, for any strategy."""
    given = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 3}}
    found, _ = strategies.candidates(run("llama-7b", given), 8, nvme=True)
    for each in found:
        tree = written.deepspeed_json(each)
        codes = {problem.code for problem in check(tree, dialect="deepspeed")}
        assert codes <= ({"checkpointing-not-called"} if each.recompute else set()), each.name


def test_buckets_are_the_models() -> None:
    sizes = {}
    for preset in ("tiny", "llama-7b"):
        own = strategies.own_candidate(run(preset, "zero3"), 8)
        zero = written.deepspeed_json(own)["zero_optimization"]
        assert zero["reduce_bucket_size"] <= dl.preset(preset).num_parameters
        assert zero["stage3_max_live_parameters"] <= dl.preset(preset).num_parameters
        sizes[preset] = zero["reduce_bucket_size"]
    assert sizes["tiny"] < sizes["llama-7b"] == dl.preset("llama-7b").num_block_parameters


def test_deepspeed_reads_it_as_it_is() -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    own = strategies.own_candidate(run("llama-7b", "zero3_offload", global_batch_size=8), 1)
    read = DeepSpeedConfig(written.deepspeed_json(own))
    assert (read.train_batch_size, read.train_micro_batch_size_per_gpu) == (8, 4)
    assert read.gradient_accumulation_steps == 2
    assert read.zero_config.stage == 3
    assert read.zero_config.reduce_bucket_size == dl.preset("llama-7b").num_block_parameters
    assert read.zero_config.offload_param.device == "cpu"


# The file itself


def write(path: Path, **arguments: Any) -> Any:
    return dl.plan(run(), world_size=8, gpu_memory="80GiB", write=path, **arguments)


def test_the_recommended_or_the_named_one_is_written(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    plan = write(path)
    best = plan.strategy(plan.recommended)
    assert json.loads(path.read_text()) == written.deepspeed_json(best.candidate)
    write(path, strategy="zero1_offload", force=True)
    zero = json.loads(path.read_text())["zero_optimization"]
    assert (zero["stage"], zero["offload_optimizer"]) == (1, {"device": "cpu"})
    assert os.listdir(tmp_path) == ["ds.json"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~written._umask()


def test_a_file_that_is_there_stays_without_force(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text("mine")
    with pytest.raises(CallError) as raised:
        write(path)
    assert str(raised.value).splitlines() == [
        "error: the file is there already",
        f"where: {path}",
        "remedy: give --force to replace it, or another name",
    ]
    assert path.read_text() == "mine"


def test_a_file_that_comes_in_the_meantime_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ds.json"
    link = os.link

    def late(source: str, target: Path) -> None:
        path.write_text("theirs")
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    with pytest.raises(CallError, match="the file is there already"):
        write(path)
    assert path.read_text() == "theirs"
    assert os.listdir(tmp_path) == ["ds.json"]


def test_nothing_is_left_of_a_write_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "ds.json")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("target", "what", "remedy"),
    [
        (".", "is a folder", "name a file in it, such as ds.json"),
        ("no/ds.json", "there is no folder", "make the folder first, or name one that is there"),
    ],
)
def test_a_place_that_takes_no_file(target: str, what: str, remedy: str, tmp_path: Path) -> None:
    with pytest.raises(CallError) as raised:
        write(tmp_path / target)
    assert raised.value.what.startswith(what)
    assert raised.value.remedy == remedy
    assert raised.value.where == str(tmp_path / target)


def test_an_unknown_strategy(tmp_path: Path) -> None:
    with pytest.raises(CallError) as raised:
        write(tmp_path / "ds.json", strategy="zero3_ofload")
    assert raised.value.what == "the plan has no strategy 'zero3_ofload'"
    assert raised.value.remedy == "did you mean 'zero3_offload'?"
    assert raised.value.where == "--strategy"


def test_nothing_to_recommend_is_nothing_to_write(tmp_path: Path) -> None:
    with pytest.raises(CallError) as raised:
        dl.plan(run(), world_size=8, gpu_memory="1GiB", write=tmp_path / "ds.json")
    assert raised.value.what.startswith("there is nothing to write: nothing fits. The nearest is")
    assert raised.value.remedy == "name a strategy with --strategy, or change the run"
    assert os.listdir(tmp_path) == []
