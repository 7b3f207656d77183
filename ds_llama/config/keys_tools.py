"""Keys of monitors, profilers, data efficiency and other tools of DeepSpeed 0.19.8.

Sources: monitor/config.py, profiling/config.py, comm/config.py, compile/config.py,
autotuning/config.py, runtime/data_pipeline/config.py, runtime/swap_tensor/aio_config.py.
"""

from __future__ import annotations

from ds_llama.config.keys import Key, Section, flag, real, text, whole

AIO = Section(
    {
        "block_size": whole(1_048_576, 1),
        "queue_depth": whole(8, 1),
        "intra_op_parallelism": whole(1, 1),
        "single_submit": flag(),
        "overlap_events": flag(True),
        "use_gds": flag(),
    },
    null=True,
)

FLOPS_PROFILER = Section(
    {
        "enabled": flag(),
        "recompute_fwd_factor": real(0.0, 0),
        "profile_step": whole(1, 0),
        "module_depth": whole(-1, -1),
        "top_modules": whole(1, 0),
        "detailed": flag(True),
        "output_file": text(),
    }
)

_FOLDER = {
    "enabled": flag(),
    "output_path": text(""),
    "job_name": text("DeepSpeedJobName"),
}
TENSORBOARD = Section(_FOLDER)
CSV_MONITOR = Section(_FOLDER)
WANDB = Section({"enabled": flag(), "group": text(), "team": text(), "project": text("deepspeed")})
COMET = Section(
    {
        "enabled": flag(),
        "samples_log_interval": whole(100, 1),
        "project": text(),
        "workspace": text(),
        "api_key": text(),
        "experiment_name": text(),
        "experiment_key": text(),
        "online": Key("bool", None),
        "mode": text(None, "get", "create", "get_or_create"),
    }
)

COMMS_LOGGER = Section(
    {
        "enabled": flag(),
        "prof_all": flag(True),
        "prof_ops": Key("strings", []),
        "verbose": flag(),
        "debug": flag(),
    }
)

COMPILE = Section(
    {
        "deepcompile": flag(),
        "autoep_non_moe": flag(),
        "free_activation": flag(),
        "free_activation_threshold": whole(10 * 2**20, 0),
        "offload_activation": flag(),
        "offload_activation_pin_memory": flag(True),
        "offload_opt_states": flag(),
        "double_buffer": flag(True),
        "symmetric_memory": flag(),
        "debug_log": flag(),
        "offload_parameters": flag(),
        "sync_before_reduce": flag(),
        "sync_after_reduce": flag(),
        "sync_before_allgather": flag(),
        "sync_after_allgather": flag(),
        "keep_int_input_tensors": flag(True),
        "keep_all_input_tensors": flag(),
        "passes": Key("strings"),
    }
)

HYBRID_ENGINE = Section(
    {
        "enabled": flag(),
        "max_out_tokens": whole(512, 1),
        "inference_tp_size": whole(1, 1),
        "release_inference_cache": flag(),
        "pin_parameters": flag(True),
        "tp_gather_partition_size": whole(8, 1),
        "enable_cuda_graph": flag(),
    }
)

WEIGHT_QUANTIZATION = Section(
    {
        "enabled": flag(True),
        "num_bits": whole(8, 1),
        "q_type": text("symmetric", "symmetric", "asymmetric"),
        "q_groups": whole(1, 1),
        "quantized_initialization": Section(free=True),
        "post_init_quant": Section(free=True),
    }
)

TIMERS = Section({"throughput": Section({"enabled": flag(True), "synchronized": flag(True)})})

AUTOTUNING = Section(
    {
        "enabled": flag(),
        "fast": flag(True),
        "results_dir": text("autotuning_results"),
        "exps_dir": text("autotuning_exps"),
        "overwrite": flag(True),
        "start_profile_step": whole(3, 0),
        "end_profile_step": whole(5, 0),
        "metric": text("throughput", "throughput", "latency", "flops", "forward", "step"),
        "metric_path": text(),
        "tuner_type": text("gridsearch", "gridsearch", "random", "model_based"),
        "tuner_early_stopping": whole(5, 0),
        "tuner_num_trials": whole(50, 0),
        "arg_mappings": Section(free=True, null=True),
        "model_info": Section(
            {
                "profile": flag(),
                "num_params": whole(None, 1),
                "hidden_size": whole(None, 1),
                "num_layers": whole(None, 1),
            },
            null=True,
        ),
        "model_info_path": text(),
        "mp_size": whole(1, 1),
        "max_train_batch_size": whole(None, 1),
        "min_train_batch_size": whole(1, 1),
        "max_train_micro_batch_size_per_gpu": whole(1024, 1),
        "min_train_micro_batch_size_per_gpu": whole(1, 1),
        "num_tuning_micro_batch_sizes": whole(3, 1),
    }
)

_DYNAMIC_BATCHING = Section(
    {
        "enabled": flag(),
        "metrics_path": text(),
        "lr_scaling_method": text("linear", "linear", "sqrt", "none"),
        "min_batch_size": whole(1, 1),
        "max_batch_size": whole(None, 1),
        "sequence_picking_order": text("dataloader", "random", "seqlen", "dataloader"),
        "max_tokens": whole(None, 1),
        "verbose": flag(),
    }
)
_RANDOM_LTD = Section(
    {
        "enabled": flag(),
        "layer_token_lr_schedule": Section(
            {
                "enabled": flag(),
                "total_layer_tokens": whole(None, 1),
                "warmup_type": text(),
                "warmup_layer_tokens": whole(None, 0),
            }
        ),
        "model_mask_name": text(),
        "model_type": text(),
        "micro_batch_size": whole(None, 1),
        "global_batch_size": whole(None, 1),
        "sample_idx": Key("any"),
        "attention_mask": Key("any"),
        "hidden_state_order": text(),
        "random_ltd_layer_num": whole(None, 0),
        "random_ltd_layer_id": Key("list"),
        "total_layer_num": whole(None, 1),
        "consumed_layer_tokens": whole(None, 0),
        "random_ltd_schedule": Section(
            {
                "min_value": whole(None, 0),
                "max_value": whole(None, 0),
                "current_value": whole(None, 0),
                "schedule_type": text(),
                "schedule_config": Section(
                    {"require_steps": whole(None, 0), "seq_per_step": whole(None, 0)}
                ),
                "current_steps": whole(None, 0),
            }
        ),
    }
)

DATA_EFFICIENCY = Section(
    {
        "enabled": flag(),
        "seed": whole(1234),
        "data_sampling": Section(
            {
                "enabled": flag(),
                "num_epochs": whole(1000, 1),
                "num_workers": whole(0, 0),
                "pin_memory": flag(),
                "curriculum_learning": Section(
                    {
                        "enabled": flag(),
                        "data_cluster_path": text(),
                        "curriculum_metrics": Section(free=True),
                    }
                ),
                "dynamic_batching": _DYNAMIC_BATCHING,
            }
        ),
        "data_routing": Section({"enabled": flag(), "random_ltd": _RANDOM_LTD}),
    }
)
