"""Our schema against the installed DeepSpeed's own sources: a new release shows up here."""

from __future__ import annotations

import enum
import inspect
import re

import deepspeed
import pytest
from deepspeed.autotuning import constants as autotuning_constants
from deepspeed.comm.config import CommsLoggerConfig
from deepspeed.compile.config import CompileConfig
from deepspeed.inference.config import WeightQuantConfig
from deepspeed.module_inject.auto_ep_config import AutoEPConfig
from deepspeed.monitor import config as monitor
from deepspeed.profiling import constants as profiling_constants
from deepspeed.runtime import config as runtime
from deepspeed.runtime import lr_schedules
from deepspeed.runtime.activation_checkpointing import config as activation
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.swap_tensor.aio_config import AIO_DEFAULT_DICT
from deepspeed.runtime.tensor_parallel.config import TPConfig, TPTrainingConfig
from deepspeed.runtime.zenflow.zenflow_config import ZenFlowConfig
from deepspeed.runtime.zero import config as zero
from deepspeed.runtime.zero.leaf_module_config import DeepSpeedZeroLeafModuleConfig
from deepspeed.runtime.zero.offload_config import (
    DeepSpeedZeroOffloadOptimizerConfig,
    DeepSpeedZeroOffloadParamConfig,
)
from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

from ds_llama.config.deepspeed import SCHEMA, VERSION, check, lookup
from ds_llama.config.keys import Key, Section
from ds_llama.config.keys_training import OPTIMIZERS, SCHEDULERS
from ds_llama.config.removed import REMOVED

MODELS = {
    "zero_optimization": zero.DeepSpeedZeroConfig,
    "zero_optimization.offload_param": DeepSpeedZeroOffloadParamConfig,
    "zero_optimization.offload_optimizer": DeepSpeedZeroOffloadOptimizerConfig,
    "zero_optimization.zenflow": ZenFlowConfig,
    "zero_optimization.leaf_module": DeepSpeedZeroLeafModuleConfig,
    "bf16": DeepSpeedBF16Config,
    "fp16": DeepSpeedFP16Config,
    "compile": CompileConfig,
    "hybrid_engine": runtime.HybridEngineConfig,
    "weight_quantization": WeightQuantConfig,
    "comms_logger": CommsLoggerConfig,
    "timers.throughput": DeepSpeedThroughputTimerConfig,
    "tensorboard": monitor.TensorBoardConfig,
    "wandb": monitor.WandbConfig,
    "csv_monitor": monitor.CSVConfig,
    "comet": monitor.CometConfig,
    "tensor_parallel": TPTrainingConfig,
    "tensor_parallel.tp": TPConfig,
}


def section(path):
    found = lookup(path.split("."))
    assert isinstance(found, Section)
    return found


def test_the_installed_deepspeed_is_the_one_that_was_read():
    assert deepspeed.__version__.split("+")[0] == VERSION


@pytest.mark.parametrize("path", MODELS)
def test_keys_are_those_of_the_pydantic_models(path):
    fields = MODELS[path].model_fields
    theirs = {name for name in fields} | {field.alias for field in fields.values() if field.alias}
    ours = set(section(path).keys)
    assert ours - theirs == set(), "keys that DeepSpeed does not have"
    assert theirs - ours == set(), "keys that DeepSpeed has and we do not"


def plain(value):
    return value.value if isinstance(value, enum.Enum) else value


@pytest.mark.parametrize("path", MODELS)
def test_defaults_are_those_of_the_pydantic_models(path):
    """Where both are plain values; None here means that DeepSpeed decides at run time."""
    fields = MODELS[path].model_fields
    by_name = {**fields, **{f.alias: f for f in fields.values() if f.alias}}
    for name, key in section(path).keys.items():
        if isinstance(key, Key) and key.default is not None and not by_name[name].default_factory:
            assert plain(by_name[name].default) == key.default, f"{path}.{name}"


def constants_called(function_source, *modules):
    """Values of the upper-case names in a function that are not its defaults."""
    names = set(re.findall(r"\b[A-Z][A-Z0-9_]{2,}\b", function_source))
    found = {}
    for module in modules:
        found |= {name: getattr(module, name) for name in names if hasattr(module, name)}
    return {
        value
        for name, value in found.items()
        if isinstance(value, str)
        and not name.endswith(("_DEFAULT", "_FORMAT"))
        and "\n" not in value
    }


def test_top_level_keys_are_those_that_deepspeed_reads():
    parts = [inspect.getsource(f) for n, f in vars(runtime).items() if n.startswith("get_")]
    source = "\n".join(parts)
    read = constants_called(source, runtime)
    literal = set(
        re.findall(r"param_dict(?:\.get\(|\[)[\"'](\w+)[\"']", inspect.getsource(runtime))
    )
    inner = {
        *("type", "params", "legacy_fusion", "max_grad_norm", "enabled", "dtype", "warn", "fail"),
        *("lower_precision_safe_modules", "tag_validation", "parallel_write", "pipeline_stage"),
        *("mean", "sum", "WARN", "IGNORE", "FAIL", "seed", "data_routing", "data_sampling"),
    }
    read |= set(monitor.DeepSpeedMonitorConfig.model_fields)
    missing = (read | literal) - inner - set(SCHEMA.keys) - {key.split(".")[0] for key in REMOVED}
    assert missing == set()


def test_hand_parsed_sections_have_the_keys_that_their_parsers_read():
    def constants(module, prefix):
        return {
            value
            for name, value in vars(module).items()
            if name.startswith(prefix)
            and isinstance(value, str)
            and not name.endswith(("_DEFAULT", "_FORMAT"))
        }

    assert set(section("aio").keys) == set(AIO_DEFAULT_DICT)
    checkpointing = constants(activation, "ACT_CHKPT_") - {"activation_checkpointing"}
    assert set(section("activation_checkpointing").keys) == checkpointing
    flops = constants(profiling_constants, "FLOPS_PROFILER_")
    assert set(section("flops_profiler").keys) == flops
    tuning = re.findall(
        r"AUTOTUNING_\w+|MODEL_INFO\b", inspect.getsource(runtime.DeepSpeedAutotuningConfig)
    )
    names = {getattr(autotuning_constants, n) for n in tuning if not n.endswith("_DEFAULT")}
    assert names - {None} <= set(section("autotuning").keys)
    experts = {name for name in AutoEPConfig.__dataclass_fields__ if not name.startswith("_")}
    assert set(section("expert_parallel").keys) == experts


def test_removed_keys_are_those_that_deepspeed_stops_at():
    theirs = set(runtime._REMOVED_TOP_LEVEL_CONFIG_KEYS)
    theirs |= {f"zero_optimization.{key}" for key in runtime._REMOVED_ZERO_CONFIG_KEYS}
    assert set(REMOVED) == theirs
    for key in REMOVED:
        name, _, inner = key.partition(".")
        (problem,) = [
            p for p in check({name: {inner: 1} if inner else {}}) if p.severity == "error"
        ]
        assert (problem.code, problem.key) == ("removed-key", key)
        assert "DeepSpeed 0.19 removed" in problem.message


def test_optimizers_and_schedulers_are_deepspeeds():
    assert set(OPTIMIZERS) == set(runtime.DEEPSPEED_OPTIMIZERS)
    assert set(SCHEDULERS) == set(lr_schedules.VALID_LR_SCHEDULES)
    for name, ours in SCHEDULERS.items():
        accepted = set(inspect.signature(getattr(lr_schedules, name).__init__).parameters)
        assert set(ours.keys) == accepted - {"self", "optimizer"}


# --- the check itself


def codes(deepspeed, **keywords):
    return {
        (problem.key, problem.code)
        for problem in check(deepspeed, **keywords)
        if problem.severity == "error"
    }


def hand_parsed():
    names = (
        *("optimizer", "scheduler", "checkpoint", "data_types", "aio", "activation_checkpointing"),
        *("flops_profiler", "torch_autocast", "data_efficiency", "autotuning", "expert_parallel"),
    )
    return names


@pytest.mark.parametrize("name", [*hand_parsed(), "bf16", "compile", "comet", "tensor_parallel"])
def test_an_unknown_key_in_any_section_is_an_error(name):
    found = codes({name: {"typo": 1}})
    expected = "beside-params" if name in ("optimizer", "scheduler") else "unknown-key"
    assert (f"{name}.typo", expected) in found


def test_a_misspelt_top_level_key_names_the_nearest():
    (problem,) = [p for p in check({"zero_optimisation": {"stage": 2}}) if p.severity == "error"]
    assert (problem.key, problem.remedy) == (
        "zero_optimisation",
        "did you mean 'zero_optimization'?",
    )


@pytest.mark.parametrize(
    ("deepspeed", "key", "message", "remedy"),
    [
        (
            {"zero_optimization": True},
            "zero_optimization",
            "is true, not an object",
            '{"stage": 1}',
        ),
        ({"bf16": 1}, "bf16", "bf16 is 1, not an object", "an object"),
        (
            {"bf16": {"enabled": 1}},
            "bf16.enabled",
            "enabled is 1, not true or false",
            "true or false",
        ),
        (
            {"train_batch_size": 2.5},
            "train_batch_size",
            "is 2.5, not a whole number",
            "whole number",
        ),
        ({"train_batch_size": 0}, "train_batch_size", "is 0, out of range", "at least 1"),
        ({"train_batch_size": 10**30}, "train_batch_size", "out of range", "at most"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage", "is 4", "at most 3"),
        ({"fp16": {"loss_scale": -1}}, "fp16.loss_scale", "is -1, out of range", "at least 0"),
        (
            {"communication_data_type": "int8"},
            "communication_data_type",
            "is 'int8', which it cannot be",
            "'fp32', 'fp16', 'bf16'",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "gpu"}, "stage": 1}},
            "zero_optimization.offload_optimizer.device",
            "is 'gpu'",
            "'none', 'cpu', 'nvme'",
        ),
        (
            {"compile": {"passes": [1]}},
            "compile.passes",
            "is [1], not a list of strings",
            "a list of strings",
        ),
        (
            {"optimizer": {"type": "Adam", "params": {"max_grad_norm": 1}}},
            "optimizer.params.max_grad_norm",
            "max_grad_norm",
            'write "gradient_clipping"',
        ),
        (
            {"optimizer": {"type": "adamw", "params": {"learning_rate": 1}}},
            "optimizer.params.learning_rate",
            "unknown key 'learning_rate'",
            "known names",
        ),
    ],
)
def test_values_that_do_not_fit(deepspeed, key, message, remedy):
    (problem,) = [p for p in check(deepspeed) if p.key == key]
    assert message in problem.message
    assert remedy in problem.remedy


def test_what_deepspeed_takes_is_taken():
    assert (
        codes(
            {
                "zero_optimization": {
                    "stage": 3,
                    "reduce_bucket_size": 5e8,
                    "offload_param": None,
                    "leaf_module": {"classes": "Block"},
                },
                "communication_data_type": "FP32",
                "checkpoint": {"tag_validation": "Warn"},
                "pipeline": {"stages": "auto"},
                "data_types": {"keep_in_fp32_modules": "auto"},
                "steps_per_print": None,
                "optimizer": {"type": "SGD", "params": {"lr": 0.1, "nesterov": True}},
                "zero_allow_untested_optimizer": True,
            }
        )
        == set()
    )


def test_auto_by_dialect():
    deepspeed = {"gradient_clipping": "auto", "train_micro_batch_size_per_gpu": "auto"}
    found = codes(deepspeed)
    assert found == {(key, "auto-value") for key in deepspeed}
    assert codes({**deepspeed, "zero_optimization": {}}, dialect="huggingface") == set()
    assert codes(deepspeed, dialect="run") == set()


def test_old_names_are_warned_about():
    found = check({"zero_optimization": {"stage": 2, "cpu_offload": True}, "gradient_clipping": 1})
    (problem,) = found
    assert (problem.severity, problem.code) == ("warning", "deprecated-key")
    assert "offload_optimizer" in problem.remedy


def test_a_problem_is_a_plain_dict():
    problem = check({"x": 1})[0]
    assert set(problem.to_dict()) == {"code", "severity", "key", "message", "remedy"}
