from __future__ import annotations

import json

import pytest

from ds_llama.config import LlamaConfig, load_run, preset, presets
from ds_llama.config.buckets import choices, for_model
from ds_llama.config.deepspeed import SCHEMA
from ds_llama.config.resolve import resolve
from ds_llama.errors import ConfigError, ConfigErrors


def resolved(tree, *overrides, world=2, **keywords):
    return resolve(load_run(tree, *overrides), world, **keywords)


def errors(tree, *overrides, world=2, **keywords):
    with pytest.raises(ConfigErrors) as caught:
        resolved(tree, *overrides, world=world, **keywords)
    return caught.value.errors


def leaves(value, path=""):
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, f"{path}.{name}")
    else:
        yield path, value


def test_everything_effective_is_written_out(tree):
    result = resolved(tree, "train.micro_batch_size=4")
    found = result.deepspeed
    assert (found["train_batch_size"], found["gradient_accumulation_steps"]) == (8, 1)
    assert found["gradient_clipping"] == 1.0
    assert found["bf16"] == {**SCHEMA.keys["bf16"].defaults(), "enabled": True}
    assert found["zero_optimization"]["overlap_comm"] is False
    assert found["zero_allow_untested_optimizer"] is True
    assert found["steps_per_print"] is None
    assert found["wall_clock_breakdown"] is False
    assert "auto" not in [value for _, value in leaves(found)]
    assert (result.stage, result.dtype) == (2, "bfloat16")
    assert (result.offload_optimizer, result.offload_param) == (None, None)
    assert json.loads(json.dumps(found)) == found


def test_it_is_pure(tree):
    run = load_run(tree)
    before = run.model_dump_json()
    assert resolve(run, 2) == resolve(run, 2)
    assert run.model_dump_json() == before


def test_gaps_of_the_run_are_filled(tree):
    run = resolved(tree).run
    assert run.data.sequence_length == 256  # tiny's max_position_embeddings
    assert run.train.epochs == 1.0
    assert (run.train.micro_batch_size, run.train.global_batch_size) == (1, 2)
    assert run.optimizer.lr == 3e-4
    assert resolved(tree, "data.sequence_length=512").run.data.sequence_length == 512
    (warning,) = resolved(tree, "data.sequence_length=512").problems
    assert warning.key == "data.sequence_length"
    assert "(512) is beyond the model's max_position_embeddings (256)" in warning.message
    steps = resolved(tree, "train.steps=7")
    assert (steps.run.train.epochs, steps.total_steps) == (None, 7)


def test_the_optimizer_of_the_deepspeed_json_is_used(tree):
    tree["deepspeed"] = {"optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}
    result = resolved(tree)
    assert result.run.optimizer is None
    assert result.deepspeed["optimizer"]["params"] == {"lr": 1e-3}


def test_what_is_written_reads_back_and_resolves_to_the_same(tree, write):
    first = resolved(tree, "train.steps=3", "deepspeed=zero3_offload", world=4)
    again = load_run(write("run.json", first.to_json()))
    second = resolve(again, 4)
    assert second.deepspeed == first.deepspeed
    assert second.model == first.model
    assert first.to_json()["resolved"]["versions"]["deepspeed"]
    assert second.to_json() == first.to_json()


def test_hub_weights_need_their_architecture(tree):
    tree["model"] = {"pretrained": "meta-llama/Llama-3.2-1B"}
    with pytest.raises(ConfigError, match="is not on this machine"):
        resolved(tree)
    assert resolved(tree, model=preset("tiny")).to_json()["model"] == tree["model"]


# --- the batch


@pytest.mark.parametrize(
    ("train", "deepspeed", "expected"),
    [
        ({"global_batch_size": 8}, {}, (8, 4, 1)),
        ({"micro_batch_size": 2, "global_batch_size": 8}, {}, (8, 2, 2)),
        ({}, {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 2}, (8, 2, 2)),
        ({}, {"train_batch_size": "auto", "train_micro_batch_size_per_gpu": 2}, (4, 2, 1)),
        ({"micro_batch_size": 2}, {"gradient_accumulation_steps": 3}, (12, 2, 3)),
        ({"micro_batch_size": 2}, {"train_micro_batch_size_per_gpu": 2.0}, (4, 2, 1)),
        ({}, {"gradient_accumulation_steps": "auto"}, (2, 1, 1)),
    ],
)
def test_the_batch_is_worked_out(tree, train, deepspeed, expected):
    result = resolved({**tree, "train": train, "deepspeed": deepspeed})
    sizes = (result.global_batch_size, result.micro_batch_size, result.accumulation_steps)
    keys = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    assert sizes == expected == tuple(result.deepspeed[key] for key in keys)


def test_a_batch_that_does_not_divide_names_what_was_given(tree):
    (error,) = errors(tree, "train.global_batch_size=12", "train.micro_batch_size=4")
    assert error.what == (
        "train.global_batch_size (12) and train.micro_batch_size (4) do not fit together on "
        "2 data-parallel ranks"
    )
    assert "train_batch_size 8 = 4 micro x 1 accumulation x 2 ranks" in error.remedy
    assert "train_batch_size 12 = 3 micro x 2 accumulation x 2 ranks" in error.remedy


def test_run_and_deepspeed_must_not_contradict(tree):
    tree |= {"train": {"micro_batch_size": 2}, "deepspeed": {"train_micro_batch_size_per_gpu": 4}}
    (error,) = errors(tree)
    assert error.what == (
        "train.micro_batch_size is 2 in the run, train_micro_batch_size_per_gpu is 4 in the "
        "DeepSpeed JSON"
    )
    assert error.where == "run:train.micro_batch_size"


# --- precision and devices


def test_half_precision_at_stage_0_is_refused(tree):
    with pytest.raises(ConfigErrors) as caught:
        load_run(tree, "deepspeed.zero_optimization.stage=0")
    (error,) = caught.value.errors
    assert "phantom optimizer step" in error.what
    assert '"stage": 1' in error.remedy


@pytest.mark.parametrize(
    ("deepspeed", "dtype"),
    [
        ({}, "float32"),
        ({"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}}, "bfloat16"),
        ({"bfloat16": {"enabled": True}, "zero_optimization": {"stage": 1}}, "bfloat16"),
        ({"fp16": {"enabled": True}, "zero_optimization": {"stage": 1}}, "float16"),
        ({"torch_autocast": {"enabled": True}}, "float32"),
        (
            {
                "bf16": {"enabled": "auto"},
                "fp16": {"enabled": "auto"},
                "zero_optimization": {"stage": 2},
            },
            "bfloat16",
        ),
        (
            {
                "bf16": {"enabled": "auto"},
                "fp16": {"enabled": True},
                "zero_optimization": {"stage": 2},
            },
            "float16",
        ),
        ({"bf16": {"enabled": "auto"}, "zero_optimization": {"stage": 0}}, "float32"),
    ],
)
def test_the_training_dtype(tree, deepspeed, dtype):
    result = resolved({**tree, "deepspeed": deepspeed})
    assert result.dtype == dtype
    assert "bfloat16" not in result.deepspeed
    if "torch_autocast" in deepspeed:
        assert result.deepspeed["torch_autocast"]["dtype"] == "bfloat16"


def test_accumulation_in_half_precision_adds_up_in_fp32(tree):
    accumulated = ["train.global_batch_size=8", "train.micro_batch_size=2"]
    found = resolved(tree, *accumulated).deepspeed
    assert found["data_types"] == {"grad_accum_dtype": "fp32"}
    assert found["communication_data_type"] == "fp32"
    assert "data_types" not in resolved(tree).deepspeed
    assert "data_types" not in resolved({**tree, "deepspeed": "zero0"}, *accumulated).deepspeed
    chosen = resolved(tree, *accumulated, "deepspeed.data_types.grad_accum_dtype=bf16").deepspeed
    assert chosen["data_types"] == {"grad_accum_dtype": "bf16"}


def test_memory_is_pinned_on_cuda_alone_unless_said(tree):
    tree["deepspeed"] = "zero3_offload"
    for device, pinned in (("cuda", True), ("cpu", False)):
        zero = resolved(tree, device=device).deepspeed["zero_optimization"]
        assert zero["offload_optimizer"]["pin_memory"] is pinned
        assert zero["offload_param"]["pin_memory"] is pinned
    key = "deepspeed.zero_optimization.offload_param.pin_memory"
    result = resolved(tree, f"{key}=true", device="cpu")
    assert result.deepspeed["zero_optimization"]["offload_param"]["pin_memory"] is True
    assert [problem.code for problem in result.problems] == ["pinned-without-gpu"]


def test_offload_devices(tree):
    result = resolved(tree, "deepspeed=zero3_offload")
    assert (result.offload_optimizer, result.offload_param, result.stage) == ("cpu", "cpu", 3)
    result = resolved(tree, "deepspeed.zero_optimization.offload_optimizer.device=none")
    assert result.offload_optimizer is None
    null = resolved(
        tree, "deepspeed=zero2_offload", "deepspeed.zero_optimization.offload_optimizer=null"
    )
    assert "offload_optimizer" not in null.deepspeed["zero_optimization"]


def test_a_section_can_be_taken_away(tree):
    tree["deepspeed"] = {"zero_optimization": {"stage": 1}, "activation_checkpointing": {}}
    assert "activation_checkpointing" in resolved(tree).deepspeed
    gone = resolved(tree, "deepspeed.activation_checkpointing=null")
    assert "activation_checkpointing" not in gone.deepspeed


def test_what_is_recomputed_brings_the_section_that_says_how(tree):
    found = resolved(tree, "train.recompute.part=mlp", "train.recompute.every=2")
    assert found.deepspeed["activation_checkpointing"]["partition_activations"] is False
    assert found.to_json()["train"]["recompute"] == {"part": "mlp", "every": 2}
    tree["deepspeed"] = {"activation_checkpointing": {}}
    found = resolved(tree)
    assert found.to_json()["train"]["recompute"] == {"part": "block", "every": 1}
    tree["train"] = {"recompute": {}}
    with pytest.raises(ConfigErrors, match="recompute says what is recomputed, and activation_"):
        resolved(tree, "deepspeed.activation_checkpointing=null")


def test_short_names_of_stage_3_keys_become_the_documented_ones(tree):
    tree["deepspeed"] = {"zero_optimization": {"stage": 3, "max_live_parameters": 5}}
    zero = resolved(tree).deepspeed["zero_optimization"]
    assert zero["stage3_max_live_parameters"] == 5
    assert "max_live_parameters" not in zero


# --- "auto"


def test_auto_of_the_hugging_face_trainer_is_resolved(tree):
    tree["deepspeed"] = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16},
        "zero_optimization": {
            "stage": 3,
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "overlap_comm": "auto",
        },
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
        },
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": {
                "total_num_steps": "auto",
                "warmup_min_lr": "auto",
                "warmup_max_lr": "auto",
                "warmup_num_steps": 5,
            },
        },
        "activation_checkpointing": {"number_checkpoints": "auto"},
    }
    found = resolved(tree, "train.steps=50").deepspeed
    assert "auto" not in [value for _, value in leaves(found)]
    assert found["optimizer"]["params"] == {
        "lr": 3e-4,
        "betas": [0.9, 0.95],
        "eps": 1e-8,
        "weight_decay": 0.1,
    }
    assert found["scheduler"]["params"]["total_num_steps"] == 50
    assert found["scheduler"]["params"]["warmup_max_lr"] == 3e-4
    assert found["gradient_clipping"] == 1.0
    assert found["zero_optimization"]["reduce_bucket_size"] == preset("tiny").num_parameters


@pytest.mark.parametrize(
    ("deepspeed", "key"),
    [
        (
            {
                "optimizer": {"type": "AdamW", "params": {}},
                "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}},
            },
            "scheduler.params.warmup_num_steps",
        ),
        (
            {
                "optimizer": {"type": "AdamW", "params": {}},
                "scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": "auto"}},
            },
            "scheduler.params.total_num_steps",
        ),
        ({"fp16": {"enabled": "auto"}, "zero_optimization": {"stage": 1}}, "fp16.enabled"),
    ],
)
def test_auto_that_nothing_decides_is_refused(tree, deepspeed, key):
    (error,) = errors({**tree, "deepspeed": deepspeed})
    assert error.where == f"run:deepspeed.{key}"
    assert error.what.startswith('"auto" cannot be resolved')
    assert error.remedy.startswith("write ")


# --- buckets


@pytest.mark.parametrize(
    "name", ["tiny", "quickstart", "llama-3.2-1b", "llama-7b", "llama-3.1-405b"]
)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_no_bucket_is_above_the_model_or_deepspeeds_default(name, stage):
    model = preset(name)
    sizes = for_model(model, stage)
    zero = SCHEMA.keys["zero_optimization"].keys
    for key, size in sizes.items():
        assert 0 < size <= model.num_parameters
        assert size <= zero[key].default
    assert sizes.get("allgather_bucket_size", 0) % 2 == 0
    assert bool(sizes) == (stage > 0)


@pytest.mark.parametrize(
    "name", ["tiny", "quickstart", "llama-3.2-1b", "llama-7b", "llama-3.1-405b"]
)
def test_stage_3_keeps_norms_whole_and_shards_every_matrix(name):
    model = preset(name)
    threshold = for_model(model, 3)["stage3_param_persistence_threshold"]
    assert model.hidden_size <= threshold < model.hidden_size * model.key_value_size


def test_biases_are_kept_whole_too():
    model = LlamaConfig(hidden_size=64, intermediate_size=256, num_attention_heads=4, mlp_bias=True)
    assert for_model(model, 3)["stage3_param_persistence_threshold"] == 256


def test_one_block_is_reduced_at_a_time():
    model = preset("llama-7b")
    assert for_model(model, 2)["reduce_bucket_size"] == model.num_block_parameters


@pytest.mark.parametrize("name", presets())
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_size_has_its_reason(name, stage):
    model = preset(name)
    found = choices(model, stage)
    values = {key: own.value for key, own in found.items() if key != "overlap_comm"}
    assert values.items() <= for_model(model, stage).items()
    assert all(own.why for own in found.values())
    whole, block = model.num_parameters, model.num_block_parameters
    assert values["reduce_bucket_size"] == min(max(block, 2**23), whole, 500_000_000)


def test_buckets_that_are_said_are_kept(tree):
    key = "deepspeed.zero_optimization.reduce_bucket_size"
    result = resolved(tree, f"{key}=5e8")
    assert result.deepspeed["zero_optimization"]["reduce_bucket_size"] == 5e8
    assert [problem.code for problem in result.problems] == ["bucket-above-model"]
