"""Files as people post them: the shapes of public threads and examples, written anew.

Each says what became of its author, and what lint says instead.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ds_llama.config.lint import Linter

CPU = {"device": "cpu", "pin_memory": True}
FP16 = {"enabled": True, "loss_scale": 0, "loss_scale_window": 1000, "min_loss_scale": 1}
OPTIMIZER = {"type": "AdamW", "params": {"lr": 1e-5, "betas": [0.9, 0.999]}}
AUTO_OPTIMIZER = {
    "type": "AdamW",
    "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
}
AUTO_BATCH = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
}
AUTO_ZERO3 = {
    "stage": 3,
    "overlap_comm": True,
    "contiguous_gradients": True,
    "sub_group_size": 1e9,
    "reduce_bucket_size": "auto",
    "stage3_prefetch_bucket_size": "auto",
    "stage3_param_persistence_threshold": "auto",
    "stage3_max_live_parameters": 1e9,
    "stage3_max_reuse_distance": 1e9,
    "stage3_gather_16bit_weights_on_model_save": True,
}

# What is posted, the dialect, and every error as key -> (code, words of its message or remedy).
POSTED = {
    # "it doesn't seem to do anything. Am I missing something?"
    "deepspeedai/DeepSpeed#1935": (
        {
            "zero_optimization": {"stage": 2, "allgather_bucket_size": 1e7},
            "offload_optimizer": {"device": "cpu", "pin_memory": True},
        },
        "deepspeed",
        {"offload_optimizer": ("misplaced-key", "move it into 'zero_optimization'")},
    ),
    # a pydantic "extra fields not permitted"
    "deepspeedai/DeepSpeed#2721": (
        {
            "zero_optimization": {
                "stage": 3,
                "offload_param": {"device": "nvme", "nvme_path": "/local_nvme"},
                "aio": {"block_size": 262144, "queue_depth": 32, "thread_count": 1},
            },
        },
        "deepspeed",
        {"zero_optimization.aio": ("misplaced-key", "move it to the top level")},
    ),
    # an AssertionError from the construction of the model
    "deepspeedai/DeepSpeed#2624": (
        {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
        "deepspeed",
        {"zero_optimization.offload_param.nvme_path": ("nvme-without-path", "does not say where")},
    ),
    # "DeepSpeedZeroOptimizer is not an Optimizer"
    "deepspeedai/DeepSpeed#6992": (
        {
            "train_batch_size": 4,
            "_comment": "the scheduler",
            "optimizer": OPTIMIZER,
            "scheduler": {"type": "CosineAnnealingLR", "params": {"T_max": 10, "eta_min": 5e-6}},
            "fp16": {"enabled": True},
            "zero_optimization": {"stage": 2},
            "gradient_clipping": 1.0,
        },
        "deepspeed",
        {"scheduler.type": ("torch-scheduler", "is not an Optimizer")},
    ),
    # "8 != 2 * 1 * 1", of which the author wrote the 8 and the 2
    "deepspeedai/DeepSpeed#6914": (
        {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 3},
        "deepspeed",
        {"train_batch_size": ("batch-product", "6 = 3 micro x 2 (on 1 or 2 ranks)")},
    ),
    # "The memory remains the same. It doesn't work!"
    "deepspeedai/DeepSpeed#5704": (
        {
            "activation_checkpointing": {
                "partition_activations": True,
                "cpu_checkpointing": True,
                "contiguous_memory_optimization": True,
                "number_checkpoints": 100,
            }
        },
        "deepspeed",
        {},
    ),
    # fails at the first step, in the swapper
    "deepspeedai/DeepSpeed#1543": (
        {
            "train_batch_size": 15,
            "fp16": {"enabled": True, "min_loss_scale": 1, "opt_level": "O3"},
            "zero_optimization": {
                "stage": 3,
                "allgather_bucket_size": 2e8,
                "offload_param": {"device": "nvme", "nvme_path": "/swap"},
                "aio": {"queue_depth": 8, "single_submit": False},
            },
        },
        "deepspeed",
        {
            "fp16.opt_level": ("unknown-key", "known names"),
            "zero_optimization.aio": ("misplaced-key", "top level"),
            "zero_optimization.allgather_bucket_size": ("no-effect-at-stage", "stage 1 or 2"),
        },
    ),
    # "the model are copied in GPUs, not shard in GPUs. Why?"
    "deepspeedai/DeepSpeed#6877": (
        {
            "train_micro_batch_size_per_gpu": 1,
            "model_parallel_size": 3,
            "zero_optimization": {"stage": 3, "offload_param": CPU},
            "bf16": {"enabled": True},
        },
        "deepspeed",
        {"model_parallel_size": ("unknown-key", "'data_parallel_size'")},
    ),
    # to the Trainer "false" is true, as every string is
    "hiyouga/LlamaFactory#3493": (
        {
            **AUTO_BATCH,
            "bf16": {"enabled": "true"},
            "fp16": {"enabled": "false"},
            "zero_optimization": AUTO_ZERO3,
        },
        "huggingface",
        {
            "bf16.enabled": ("wrong-type", "'true', not true or false"),
            "fp16.enabled": ("wrong-type", "'false', not true or false"),
        },
    ),
    # "What parts of deepspeed configuration can use auto?"
    "huggingface/accelerate#1644": (
        {
            **AUTO_BATCH,
            "fp16": {**FP16, "enabled": "auto"},
            "bf16": {"enabled": "auto"},
            "optimizer": AUTO_OPTIMIZER,
            "zero_optimization": {
                "stage": 2,
                "sub_group_size": "auto",
                "reduce_bucket_size": "auto",
            },
        },
        "huggingface",
        {"zero_optimization.sub_group_size": ("auto-unfilled", "Accelerate stops at it")},
    ),
    # "Please specify the ZeRO optimization config in the DeepSpeed config."
    "zjunlp/KnowLM#87": (
        {**AUTO_BATCH, "zero_optimizaton": {"stage": 2}},
        "huggingface",
        {
            "zero_optimizaton": ("unknown-key", "did you mean 'zero_optimization'?"),
        },
    ),
    # parameters are not partitioned there, "offload_param is meaningless"
    "wenet-e2e/wenet#2499": (
        {"zero_optimization": {"stage": 2, "offload_param": CPU, "offload_optimizer": CPU}},
        "deepspeed",
        {"zero_optimization.offload_param": ("no-effect-at-stage", "take stage 3")},
    ),
    # no error before the second node: both names were given
    "EleutherAI/gpt-neox#469": (
        {"zero_optimization": {"stage": 1, "cpu_offload": False, "overlap_comm": True}},
        "deepspeed",
        {},
    ),
}


def problems(content, dialect="deepspeed", **known):
    return Linter(dialect, **known).problems(content, Path("ds.json"))


@pytest.mark.parametrize("thread", POSTED)
def test_a_posted_file_gets_its_answer(thread):
    content, dialect, errors = POSTED[thread]
    found = {p.key: p for p in problems(content, dialect) if p.severity == "error"}
    assert {key: p.code for key, p in found.items()} == {k: code for k, (code, _) in errors.items()}
    for key, (_, words) in errors.items():
        assert words in f"{found[key].message} | {found[key].remedy}"


def test_warnings_of_posted_files():
    """deepspeedai/DeepSpeed#5704, EleutherAI/gpt-neox#469 and #6992 get by with a warning."""

    def warned(thread):
        content, dialect, _ = POSTED[thread]
        return {p.code for p in problems(content, dialect) if p.severity == "warning"}

    assert "checkpointing-not-called" in warned("deepspeedai/DeepSpeed#5704")
    assert "deprecated-key" in warned("EleutherAI/gpt-neox#469")
    assert warned("deepspeedai/DeepSpeed#6992") == {"comment-key"}


def test_a_world_that_the_author_did_not_have():
    """deepspeedai/DeepSpeed#6914: four ranks were started, one was seen."""
    content = {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 2}
    assert "batch-world" not in {p.code for p in problems(content, world_size=4)}
    content["gradient_accumulation_steps"] = 1
    (found,) = [p for p in problems(content, world_size=1) if p.code == "batch-world"]
    assert "on 1 data-parallel ranks" in found.message
    assert "8 = 2 micro x 4 accumulation x 1 ranks" in found.remedy
    (found,) = [p for p in problems(content) if p.code == "batch-one-world"]
    assert "4 data-parallel ranks only" in found.message


# --- files that are as they should be, for the Trainer: the shapes of LLaMA-Factory's examples

TRAINER = {
    "z2": {
        **AUTO_BATCH,
        "zero_allow_untested_optimizer": True,
        "fp16": {**FP16, "enabled": "auto", "initial_scale_power": 16, "hysteresis": 2},
        "bf16": {"enabled": "auto"},
        "zero_optimization": {
            "stage": 2,
            "allgather_partitions": True,
            "allgather_bucket_size": 5e8,
            "overlap_comm": False,
            "reduce_scatter": True,
            "reduce_bucket_size": 5e8,
            "contiguous_gradients": True,
            "round_robin_gradients": True,
        },
    },
    "z3": {
        **AUTO_BATCH,
        "fp16": {**FP16, "enabled": "auto"},
        "bf16": {"enabled": "auto"},
        "zero_optimization": AUTO_ZERO3,
    },
    "z3 offload": {
        **AUTO_BATCH,
        "bf16": {"enabled": "auto"},
        "zero_force_ds_cpu_optimizer": True,
        "zero_optimization": {**AUTO_ZERO3, "offload_optimizer": CPU, "offload_param": CPU},
    },
    "the Trainer's own optimizer and scheduler": {
        **AUTO_BATCH,
        "steps_per_print": "auto",  # hiyouga/LlamaFactory#4938: Accelerate overwrites it
        "bf16": {"enabled": True},
        "optimizer": AUTO_OPTIMIZER,
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": {
                "total_num_steps": "auto",
                "warmup_min_lr": "auto",
                "warmup_max_lr": "auto",
                "warmup_num_steps": "auto",
            },
        },
        "zero_optimization": AUTO_ZERO3,
        "wall_clock_breakdown": False,
    },
    "written out by Accelerate": {
        **AUTO_BATCH,
        "zero_optimization": {
            "stage": "auto",
            "offload_optimizer": {"device": "auto", "nvme_path": "auto"},
            "offload_param": {"device": "none", "nvme_path": None},
            "stage3_gather_16bit_weights_on_model_save": "auto",
        },
    },
}


@pytest.mark.parametrize("name", TRAINER)
def test_a_good_file_for_the_trainer_has_nothing_to_complain_about(name):
    assert problems(TRAINER[name], "huggingface") == []


def test_stage_0_of_the_same_shape_is_told_what_it_does():
    content = {**TRAINER["z2"], "zero_optimization": {"stage": 0, "round_robin_gradients": True}}
    found = {problem.code: problem.key for problem in problems(content, "huggingface")}
    assert found["no-effect-at-stage"] == "zero_optimization.round_robin_gradients"
    assert found["trainer-half-at-stage-0"] in ("bf16.enabled", "fp16.enabled")


def test_sections_of_forks_are_unknown():
    """`fp8`, `comms_config` and `monitor_config` are in copies of those examples."""
    content = {
        **TRAINER["z3"],
        "fp8": {"enabled": True},
        "comms_config": {"verbose": False},
        "monitor_config": {"enabled": True, "tag": "x"},
    }
    found = {problem.key: problem.remedy for problem in problems(content, "huggingface")}
    assert set(found) == {"fp8", "comms_config", "monitor_config"}
    assert "comms_logger" in found["comms_config"]
