"""Keys of `zero_optimization` in DeepSpeed 0.19.8 (runtime/zero/config.py, offload_config.py).

`stages` was read off the call sites: runtime/engine.py `_configure_zero_optimizer`, and
runtime/zero/partition_parameters.py for `zero.Init`.
"""

from __future__ import annotations

import sys

from ds_llama.config.keys import Key, Section, flag, real, text, whole

SHARDED = frozenset({1, 2, 3})
FLAT = frozenset({1, 2})
PARTITIONED = frozenset({3})
NOWHERE: frozenset[int] = frozenset()
DEVICES = ("none", "cpu", "nvme")

OFFLOAD_PARAM = Section(
    {
        "device": text("none", *DEVICES),
        "nvme_path": text(),
        "buffer_count": whole(5, 0),
        "buffer_size": whole(100_000_000, 0),
        "max_in_cpu": whole(1_000_000_000, 0),
        "pin_memory": flag(True),
    },
    null=True,
    stages=PARTITIONED,
)

OFFLOAD_OPTIMIZER = Section(
    {
        "device": text("none", *DEVICES),
        "nvme_path": text(),
        "buffer_count": whole(4, 0),
        "pin_memory": flag(True),
        "pipeline_read": flag(),
        "pipeline_write": flag(),
        "fast_init": flag(),
        "ratio": real(1.0, 0, high=1, stages=PARTITIONED),
        "super_offload": flag(stages=PARTITIONED),
        "cpuadam_cores_perc": real(0.8, 0, high=1, stages=PARTITIONED),
    },
    null=True,
    stages=SHARDED,
)

ZENFLOW = Section(
    {
        "topk_ratio": real(0.1, above=0, high=1),
        "select_strategy": text("auto", "auto", "step", "epoch"),
        "select_interval": whole("auto", 1, auto=True),  # type: ignore[arg-type]
        "update_interval": whole("auto", 1, auto=True),  # type: ignore[arg-type]
        "overlap_step": flag(),
        "offload": flag(),
        "auto_ratio": real(0.99, 0, high=1),
        "full_warm_up_rounds": whole(0, 0),
        "pt_reserved_cores_perc": real(0.5, 0, high=1),
        "steps_per_epoch": whole(None, 1),
    },
    null=True,
    stages=SHARDED,
)

LEAF_MODULE = Section(
    {
        "classes": Key("strings|str"),
        "names": Key("strings|str"),
        "name_suffixes": Key("strings|str"),
    },
    null=True,
    stages=PARTITIONED,
)


def _stage3(default: int, low: int | None = 0) -> Key:
    return whole(default, low, stages=PARTITIONED)


# DeepSpeed takes these with and without their prefix (populate_by_name in config_utils.py).
_PREFIXED: dict[str, Key] = {
    "prefetch_bucket_size": _stage3(50_000_000),
    "param_persistence_threshold": _stage3(100_000),
    "model_persistence_threshold": _stage3(sys.maxsize),
    "max_live_parameters": _stage3(1_000_000_000),
    "max_reuse_distance": _stage3(1_000_000_000),
    "gather_16bit_weights_on_model_save": flag(stages=PARTITIONED),
    "module_granularity_threshold": _stage3(0, None),
    "use_all_reduce_for_fetch_params": flag(stages=PARTITIONED),
    "allgather_sequential": flag(stages=PARTITIONED),
}


def _short(name: str, key: Key) -> Key:
    return Key(key.kind, key.default, low=key.low, stages=key.stages, same_as=f"stage3_{name}")


ZERO = Section(
    {
        "stage": whole(0, 0, high=3),
        "contiguous_gradients": flag(True, stages=SHARDED),
        "reduce_scatter": flag(True, stages=SHARDED),
        "reduce_bucket_size": whole(500_000_000, 1, stages=SHARDED),
        "use_multi_rank_bucket_allreduce": flag(True, stages=FLAT),
        "allgather_partitions": flag(True, stages=NOWHERE),  # engine.py:1746 has no caller
        "allgather_bucket_size": whole(500_000_000, 0, stages=FLAT),
        "overlap_comm": flag(None, stages=SHARDED),  # type: ignore[arg-type]
        "compute_grad_norm": flag(True, stages=FLAT),
        "load_from_fp32_weights": flag(True, stages=SHARDED),
        "elastic_checkpoint": flag(stages=FLAT),
        "offload_param": OFFLOAD_PARAM,
        "offload_optimizer": OFFLOAD_OPTIMIZER,
        "zenflow": ZENFLOW,
        "sub_group_size": whole(1_000_000_000, 0, stages=PARTITIONED),
        "cpu_offload": flag(
            None,  # type: ignore[arg-type]
            gone='write "offload_optimizer": {"device": "cpu"}',
        ),
        "cpu_offload_param": flag(
            None,  # type: ignore[arg-type]
            gone='write "offload_param": {"device": "cpu"}',
        ),
        "cpu_offload_use_pin_memory": flag(
            None,  # type: ignore[arg-type]
            gone='write "pin_memory" inside "offload_optimizer" or "offload_param"',
        ),
        **{f"stage3_{name}": key for name, key in _PREFIXED.items()},
        **{name: _short(name, key) for name, key in _PREFIXED.items()},
        "stage3_gather_fp16_weights_on_model_save": flag(
            stages=PARTITIONED, gone='write "stage3_gather_16bit_weights_on_model_save"'
        ),
        "ignore_unused_parameters": flag(True, stages=FLAT),
        "legacy_stage1": flag(stages=FLAT),
        "round_robin_gradients": flag(stages=FLAT),
        "parameter_alignment": flag(stages=FLAT),
        "zero_hpz_partition_size": whole(1, 0, stages=PARTITIONED),
        "zero_quantized_weights": flag(stages=PARTITIONED),
        "zero_quantized_nontrainable_weights": flag(stages=PARTITIONED),
        "zero_quantized_gradients": flag(stages=PARTITIONED),
        "memory_efficient_linear": flag(True, stages=PARTITIONED),
        "pipeline_loading_checkpoint": flag(stages=PARTITIONED),
        "override_module_apply": flag(True, stages=PARTITIONED),
        "log_trace_cache_warnings": flag(stages=PARTITIONED),
        "enable_sanity_checks": flag(stages=PARTITIONED),
        "save_muon_momentum_buffer_in_memory": flag(stages=PARTITIONED),
        "leaf_module": LEAF_MODULE,
    }
)
