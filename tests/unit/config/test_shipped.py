"""Every JSON that is shipped: read by us, accepted by DeepSpeed, with nothing to complain about."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from deepspeed.runtime.config import DeepSpeedConfig

from ds_llama.config import load_run, preset, shipped
from ds_llama.config.deepspeed import check
from ds_llama.config.resolve import resolve
from ds_llama.errors import ConfigErrors
from tests.strategies import REFUSED, content

DEEPSPEED = shipped.names()
OTHER_STAGE = {
    *("half-at-stage-0", "no-effect-at-stage", "master-weights-stage", "nvme-below-stage-3"),
    *("deepcompile-stage", "zenflow-scrambles-weights"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_cpu_refuses_what_it_cannot_run_with_one_clear_error(name):
    with pytest.raises(ConfigErrors) as caught:
        resolved(name, content(name)["zero_optimization"]["stage"], "cpu")
    code, words = REFUSED[name]
    assert {error.code for error in caught.value.errors} == {code}
    assert words in caught.value.what
    assert caught.value.where.startswith(f"{shipped.find(name)}:")
    assert "CUDA device" in caught.value.remedy


def test_each_stage_and_offload_is_there():
    wanted = {"zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload", "zero2_fp16"}
    assert wanted <= set(DEEPSPEED)
    assert shipped.find("zero9") is None
    assert shipped.runs()


@pytest.mark.parametrize("name", DEEPSPEED)
def test_a_plain_script_may_take_it(name):
    """Nothing to complain about for a script or the Trainer, and no batch, which those set."""
    assert check(content(name)) == []
    assert check(content(name), dialect="huggingface") == []
    assert not any("batch" in key for key in content(name))
    DeepSpeedConfig({**content(name), "train_micro_batch_size_per_gpu": 1})


def resolved(name, stage, device):
    tree = {"model": {"preset": "tiny"}, "data": {"train": "x"}, "deepspeed": name}
    if "optimizer" in content(name):
        tree["optimizer"] = None
    override = f"deepspeed.zero_optimization.stage={stage}"
    return resolve(load_run(tree, override), 2, device=device)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("name", DEEPSPEED)
def test_deepspeed_parses_what_it_resolves_to(name, stage, device):
    try:
        result = resolved(name, stage, device)
    except ConfigErrors as error:
        codes = {found.code for found in error.errors}
        if stage != content(name)["zero_optimization"]["stage"]:
            assert codes <= OTHER_STAGE | {"needs-gpu"}
        elif device == "cpu":
            assert codes == {REFUSED[name][0]}
        else:
            assert codes == {"zenflow-in-a-run"}
        return
    assert device != "cpu" or name not in REFUSED
    assert result.problems == ()
    # One process here: the global batch of one rank.
    config = {**result.deepspeed, "train_batch_size": result.global_batch_size // 2}
    parsed = DeepSpeedConfig(config)
    assert parsed.zero_optimization_stage == stage == result.stage
    assert parsed.gradient_clipping == 1.0
    theirs = parsed.zero_config.model_dump(by_alias=True)
    ours = result.deepspeed["zero_optimization"]
    assert {key: theirs[key] for key in ours if not key.startswith("offload")} == {
        key: value for key, value in ours.items() if not key.startswith("offload")
    }
    if result.offload_optimizer:
        assert parsed.zero_config.offload_optimizer.pin_memory is (device == "cuda")


@pytest.mark.parametrize("path", shipped.runs(), ids=lambda path: path.stem)
def test_every_run_resolves(path):
    run = load_run(path)
    # weights that are on no machine before the run's own script has made them
    there = None if run.architecture else preset("tiny")
    for world in (1, 2, 4):
        result = resolve(run, world, model=there)
        assert result.problems == ()
        assert json.loads(json.dumps(result.to_json()))


def test_the_quickstart_is_what_its_script_makes():
    run = load_run(shipped.folder() / "runs" / "quickstart.json")
    assert run.architecture == preset("quickstart")
    assert run.output == "quickstart/run"
    assert run.data.train == "quickstart/shards/train"
    assert run.data.tokenizer == "quickstart/tokenizer"
    assert run.deepspeed["zero_optimization"]["stage"] == 2
    assert run.data.sequence_length <= run.architecture.max_position_embeddings
    for stage in (1, 3):
        assert load_run(run.path, f"deepspeed.zero_optimization.stage={stage}")


def test_the_package_data_of_a_wheel_goes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "ds_llama")
    assert shipped.folder() == tmp_path / "ds_configs"
    (tmp_path / "ds_llama" / "_ds_configs").mkdir(parents=True)
    assert shipped.folder() == tmp_path / "ds_llama" / "_ds_configs"
    assert shipped.names() == shipped.runs() == []


def test_reading_a_run_imports_neither_torch_nor_deepspeed():
    code = (
        "import sys; from ds_llama.config import load_run; from ds_llama.config.resolve import "
        "resolve; resolve(load_run({'model': {'preset': 'tiny'}, 'data': {'train': 'x'}}), 2); "
        "sys.exit(len({'torch', 'deepspeed', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
