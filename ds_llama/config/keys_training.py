"""Keys of precision, optimizer, scheduler, checkpoint and parallel sections of DeepSpeed 0.19.8.

Sources: runtime/precision_config.py, runtime/constants.py, runtime/engine.py
`_configure_basic_optimizer`, runtime/lr_schedules.py, runtime/model_checkpointing,
runtime/activation_checkpointing/config.py, runtime/tensor_parallel/config.py.
"""

from __future__ import annotations

from ds_llama.config.keys import Key, Section, flag, real, text, whole

_DTYPES = "fp32 float32 float fp16 float16 half bf16 bfloat16"
DTYPES = (*_DTYPES.split(), "torch.float32", "torch.float16", "torch.bfloat16")
COMMUNICATION_DTYPES = ("fp32", "fp16", "bf16")

BF16 = Section(
    {
        "enabled": flag(),
        "immediate_grad_update": flag(),
        "check_grad_overflow": flag(True),
        "bf16_master_weights_and_grads": flag(),
        "bf16_optimizer_states": flag(),
    }
)

FP16 = Section(
    {
        "enabled": flag(),
        "auto_cast": flag(),
        "loss_scale": real(0, 0),
        "initial_scale_power": whole(16, 0, high=100),
        "loss_scale_window": whole(1000, 1),
        "hysteresis": whole(2, 0),
        "consecutive_hysteresis": flag(),
        "min_loss_scale": whole(1, 1),
        "fp16_master_weights_and_grads": flag(),
    }
)

TORCH_AUTOCAST = Section(
    {
        "enabled": flag(),
        "dtype": text(None, *DTYPES),
        "lower_precision_safe_modules": Key("strings"),
    }
)

DATA_TYPES = Section(
    {
        "grad_accum_dtype": text(None, *DTYPES),
        "param_dtype": text(None, *DTYPES),
        "buffer_dtype": text(None, *DTYPES),
        "keep_in_fp32_modules": Key("strings", "auto", auto=True),
    }
)

_LR = Key("float|numbers", 1e-3, low=0)
_BETAS = Key("numbers", [0.9, 0.999])
_DECAY = real(0.0, 0)
_ADAM = {
    "lr": _LR,
    "betas": _BETAS,
    "eps": real(1e-8, above=0),
    "weight_decay": _DECAY,
    "bias_correction": flag(True),
    "amsgrad": flag(),
    "adam_w_mode": flag(True),
    "torch_adam": flag(),
    "fp32_optimizer_states": flag(True),
    "set_grad_none": flag(True),
    "foreach": Key("bool", None),
}

# Parameters of the optimizers that DeepSpeed builds itself, by name in lower case.
OPTIMIZERS: dict[str, Section] = {
    "adam": Section(_ADAM),
    "adamw": Section(_ADAM),
    "adagrad": Section({"lr": _LR, "eps": real(1e-10, 0), "weight_decay": _DECAY}, free=True),
    "lamb": Section(
        {
            **{name: _ADAM[name] for name in ("lr", "betas", "eps", "weight_decay", "amsgrad")},
            "bias_correction": flag(True),
            "eps_inside_sqrt": flag(),
            "max_coeff": real(10.0, 0),
            "min_coeff": real(0.01, 0),
        }
    ),
    "lion": Section(
        {
            "lr": _LR,
            "betas": _BETAS,
            "weight_decay": _DECAY,
            "set_grad_none": flag(True),
            "fp32_optimizer_states": flag(True),
        }
    ),
    "muon": Section(
        {
            **_ADAM,
            "momentum": real(0.95, 0, high=1),
            "muon_lr": real(None, 0),
            "adam_lr": real(None, 0),
            "ns_method": text(),
        }
    ),
    "muadam": Section({"lr": _LR}, free=True),
    "muadamw": Section({"lr": _LR}, free=True),
    "musgd": Section({"lr": _LR}, free=True),
}
# Anything else is looked up in torch.optim, by its exact name.
_TORCH_NAMES = "Adadelta Adafactor Adagrad Adam AdamW Adamax ASGD LBFGS Muon NAdam RAdam RMSprop"
TORCH_OPTIMIZERS = (*_TORCH_NAMES.split(), "Rprop", "SGD", "SparseAdam")

OPTIMIZER = Section(
    {"type": text(), "params": Section(free=True, null=True), "legacy_fusion": flag()}
)

_LR_OR_LIST = Key("float|numbers", None, low=0)
_WARMUP = {
    "warmup_num_steps": whole(1000, 1),
    "warmup_type": text("log", "log", "linear"),
    "last_batch_iteration": whole(-1, -1),
}

SCHEDULERS: dict[str, Section] = {
    "LRRangeTest": Section(
        {
            "lr_range_test_min_lr": _LR_OR_LIST,
            "lr_range_test_step_size": whole(2000, 1),
            "lr_range_test_step_rate": real(1.0),
            "lr_range_test_staircase": flag(),
            "last_batch_iteration": whole(-1, -1),
        }
    ),
    "OneCycle": Section(
        {
            "cycle_min_lr": _LR_OR_LIST,
            "cycle_max_lr": _LR_OR_LIST,
            "decay_lr_rate": real(0.0),
            "cycle_first_step_size": whole(2000, 1),
            "cycle_second_step_size": whole(None, 1),
            "cycle_first_stair_count": whole(0, 0),
            "cycle_second_stair_count": whole(None, 0),
            "decay_step_size": whole(0, 0),
            "cycle_momentum": flag(True),
            "cycle_min_mom": real(0.8),
            "cycle_max_mom": real(0.9),
            "decay_mom_rate": real(0.0),
            "last_batch_iteration": whole(-1, -1),
        }
    ),
    "WarmupLR": Section(
        {"warmup_min_lr": _LR_OR_LIST, "warmup_max_lr": _LR_OR_LIST, **_WARMUP},
    ),
    "WarmupDecayLR": Section(
        {
            "total_num_steps": whole(None, 1),
            "warmup_min_lr": _LR_OR_LIST,
            "warmup_max_lr": _LR_OR_LIST,
            **_WARMUP,
        }
    ),
    "WarmupCosineLR": Section(
        {
            "total_num_steps": whole(None, 1),
            "warmup_min_ratio": real(0.0, 0),
            "cos_min_ratio": real(0.0001, 0),
            **_WARMUP,
        }
    ),
}
_TORCH_SCHEDULES = (
    "LambdaLR MultiplicativeLR StepLR MultiStepLR ConstantLR LinearLR ExponentialLR PolynomialLR "
    "CosineAnnealingLR CosineAnnealingWarmRestarts ReduceLROnPlateau CyclicLR OneCycleLR"
)
TORCH_SCHEDULERS = tuple(_TORCH_SCHEDULES.split())

SCHEDULER = Section({"type": text(), "params": Section(free=True, null=True)}, null=False)

ACTIVATION_CHECKPOINTING = Section(
    {
        "partition_activations": flag(),
        "number_checkpoints": whole(None, 1),
        "contiguous_memory_optimization": flag(),
        "synchronize_checkpoint_boundary": flag(),
        "profile": flag(),
        "cpu_checkpointing": flag(),
    }
)

CHECKPOINT = Section(
    {
        "tag_validation": text("WARN", "Warn", "Ignore", "Fail"),
        "checkpoint_serialization": flag(True),
        "load_universal": flag(),
        "use_node_local_storage": flag(),
        "parallel_write": Section({"pipeline_stage": flag()}),
        "writer": Section(
            {
                "type": text("FAST", "mock", "python", "fast"),
                "io_buffer_size": whole(64 * 2**20, 1),
                "io_buffer_double": flag(True),
                "show_statistics": flag(),
                "data_parallel": text(None, "replica", "socket", "machine"),
                "decoupled": flag(),
                "io_multiplier": whole(1, 1),
            },
            null=True,
        ),
    }
)

_TP = Section(
    {
        "tp_size": whole(1, 1),
        "tp_grain_size": whole(1, 1),
        "mpu": Key("any"),
        "tp_group": Key("any"),
    }
)

TENSOR_PARALLEL = Section(
    {
        "dtype": Key("any"),
        "autotp_size": whole(0, 0),
        "tp_overlap_comm": flag(),
        "vocab_parallel_lm_head": Key("bool", None),
        "vocab_parallel_ce_backend": text("torch", "torch", "liger"),
        "tensor_parallel": _TP,
        "tp": _TP,
        "injection_policy_tuple": Key("list"),
        "partition_config": Section(free=True, null=True),
        "preset_model": text(),
        "keep_module_on_host": flag(),
        "replace_with_kernel_inject": flag(),
        "kernel_inject": flag(same_as="replace_with_kernel_inject"),
    }
)

PIPELINE = Section(
    {
        "stages": Key("int", "auto", low=1, auto=True),
        "partition": text("best"),
        "seed_layers": flag(),
        "activation_checkpoint_interval": whole(0, 0),
        "pipe_partitioned": flag(True),
        "grad_partitioned": flag(True),
    },
    free=True,
)

_AUTO_TEXT = Key("any", "auto", auto=True)
_NAME = text(None)
EXPERT_PARALLEL = Section(
    {
        "enabled": flag(),
        "autoep_size": whole(1, 1),
        "expert_tensor_parallel_size": whole(1, 1),
        "validate_folding_routing": flag(),
        "async_split_plan": flag(),
        "preset_model": _NAME,
        "moe_layer_pattern": _NAME,
        "expert_pattern": _NAME,
        "router_pattern": _NAME,
        "use_grouped_mm": flag(True),
        "disable_triton_grouped_mm": flag(),
        "route_norm": Key("bool", None),
        "route_scale": real(1.0),
        "score_apply": text("auto", "auto", "pre", "post"),
        "combine_impl": _AUTO_TEXT,
        "row_weighting_impl": text("auto", "auto", "eager", "fused"),
        "gate_up_impl": text("separate", "separate", "fused"),
        "comm_backend": text("comm", "comm", "deepep"),
        "comm_num_sm": whole(12, 0),
        "comm_qp_margin": whole(4, 0),
        "comm_max_tokens_per_rank": whole(0, 0),
        "num_expert_groups": whole(None, 1),
        "num_limited_groups": whole(None, 1),
        "score_func": text("auto", "auto", "softmax", "sigmoid"),
        "top_k": _AUTO_TEXT,
        "load_balance_coeff": real(None),
        "routed_scaling_factor": _AUTO_TEXT,
        **{name: _NAME for name in ("expert_w1", "expert_w2", "expert_w3", "num_experts_attr")},
        "top_k_attr": _NAME,
        "has_shared_experts": Key("bool", None),
        "shared_experts_pattern": _NAME,
        "shared_experts_gate_pattern": _NAME,
        "expert_activation": _NAME,
    }
)
