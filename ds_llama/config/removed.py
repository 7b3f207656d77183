"""Keys that DeepSpeed had and dropped: what became of each, and what to write.

runtime/config.py of 0.19.8 (`_REMOVED_TOP_LEVEL_CONFIG_KEYS`, `_REMOVED_ZERO_CONFIG_KEYS`) stops at
these, also when the section says it is disabled.
"""

from __future__ import annotations

_FROM = "DeepSpeed 0.19 removed"

# key -> (message, remedy)
REMOVED: dict[str, tuple[str, str]] = {
    "elasticity": (
        f"{_FROM} elastic training and stops at this section",
        "remove it; set two of train_batch_size, train_micro_batch_size_per_gpu and "
        "gradient_accumulation_steps",
    ),
    "amp": (
        f"{_FROM} NVIDIA Apex AMP and stops at this section",
        'remove it; write "bf16": {"enabled": true}',
    ),
    "nebula": (
        f"{_FROM} Nebula checkpointing and stops at this section",
        "remove it; checkpoints are written by torch.save",
    ),
    "compression_training": (
        f"{_FROM} the compression library and stops at this section",
        "remove it; quantize after training",
    ),
    "quantize_training": (
        f"{_FROM} mixture-of-quantization training and stops at this section",
        "remove it; quantize after training",
    ),
    "sparse_gradients": (
        f"{_FROM} sparse embedding gradients by this flag and stops at it",
        "remove it; an embedding made with sparse=True is reduced sparsely without it",
    ),
    "eigenvalue": (
        f"{_FROM} eigenvalue-based quantization and stops at this section",
        "remove it",
    ),
    "sparse_attention": (
        f"{_FROM} sparse attention and stops at this section",
        "remove it; attention goes through torch's scaled_dot_product_attention",
    ),
    "graph_harvesting": (
        f"{_FROM} graph harvesting and stops at this key",
        'remove it; "compile": {"deepcompile": true} is what DeepSpeed compiles with now',
    ),
    "curriculum_learning": (
        f"{_FROM} the top-level curriculum and stops at this section",
        "write it inside data_efficiency.data_sampling.curriculum_learning",
    ),
    "progressive_layer_drop": (
        f"{_FROM} progressive layer dropping and stops at this section",
        "remove it",
    ),
    "zero_optimization.mics_shard_size": (
        f"{_FROM} MiCS and stops at this key",
        'remove it; "zero_hpz_partition_size" keeps a second copy of the weights within a node',
    ),
    "zero_optimization.mics_hierarchical_params_gather": (
        f"{_FROM} MiCS and stops at this key",
        'remove it; "zero_hpz_partition_size" keeps a second copy of the weights within a node',
    ),
    "zero_optimization.zeropp_loco_param": (
        f"{_FROM} LoCo and stops at this key",
        'remove it; "zero_quantized_gradients" works without error feedback',
    ),
}

# Optimizers of older releases, by name in lower case.
REMOVED_OPTIMIZERS = ("onebitadam", "zerooneadam", "onebitlamb")
