"""Cases of keys that do nothing beside another, batches and the Trainer; fields as rule_cases."""

from __future__ import annotations

from tests.unit.config.rule_words import BF16, CPU, NVME, RUN, adam, fp16, offload, scheduler, zero

HF = {"dialect": "huggingface"}
FULL_SUMS = {"data_types": {"grad_accum_dtype": "fp32"}}
BATCH = {"train_batch_size": 16, "train_micro_batch_size_per_gpu": 2}
LOGGER = {"comms_logger": {"enabled": True}}


def logger(**keys):
    return {"comms_logger": {"enabled": True, **keys}}


def bf16(**keys):
    return {"bf16": {"enabled": True, **keys}}


CASES = [
    ("not-enabled", "fp16", {"fp16": {"loss_scale": 128}}, {"fp16": {"enabled": False}}, {}),
    ("not-enabled", "bf16", {"bf16": {}}, {**BF16, **zero(1)}, {}),
    ("not-enabled", "fp16", {"fp16": {"loss_scale": 0}}, {"fp16": {"enabled": "auto"}}, HF),
    (
        "not-enabled",
        "compile",
        {"compile": {"double_buffer": False}},
        {"compile": {"passes": ["autosp"]}},
        {},
    ),
    (
        "disabled-value",
        "wandb.project",
        {"wandb": {"enabled": False, "project": "llama"}},
        {"wandb": {"enabled": True, "project": "llama"}},
        {},
    ),
    (
        "offload-without-device",
        "zero_optimization.offload_optimizer",
        zero(2, offload_optimizer={"pin_memory": True}),
        offload(pin_memory=True),
        {},
    ),
    (
        "no-effect-static-scale",
        "fp16.initial_scale_power",
        fp16(loss_scale=128, initial_scale_power=20),
        fp16(loss_scale=0, initial_scale_power=20),
        {},
    ),
    (
        "no-effect-without-super-offload",
        "zero_optimization.offload_optimizer.cpuadam_cores_perc",
        zero(3, offload_optimizer={**CPU, "cpuadam_cores_perc": 0.5}),
        zero(3, offload_optimizer={**CPU, "cpuadam_cores_perc": 0.5, "super_offload": True}),
        {},
    ),
    (
        "no-effect-without-offload",
        "zero_optimization.ignore_unused_parameters",
        zero(2, ignore_unused_parameters=False),
        zero(2, ignore_unused_parameters=False, offload_optimizer=CPU),
        {},
    ),
    (
        "no-effect-sequential",
        "zero_optimization.stage3_prefetch_bucket_size",
        zero(3, stage3_allgather_sequential=True, stage3_prefetch_bucket_size=1e7),
        zero(3, stage3_prefetch_bucket_size=1e7),
        {},
    ),
    (
        "no-effect-prof-all",
        "comms_logger.prof_ops",
        logger(prof_ops=["all_reduce"]),
        logger(prof_ops=["all_reduce"], prof_all=False),
        {},
    ),
    (
        "no-effect-predivide",
        "gradient_predivide_factor",
        {"prescale_gradients": True, "gradient_predivide_factor": 2},
        {"gradient_predivide_factor": 2},
        {},
    ),
    (
        "no-effect-mesh",
        "data_parallel_size",
        {"data_parallel_size": 2},
        {"data_parallel_size": 2, "sequence_parallel_size": 2},
        {},
    ),
    (
        "no-effect-anywhere",
        "zero_optimization.allgather_partitions",
        zero(2, allgather_partitions=False),
        zero(2, allgather_partitions=True),
        {},
    ),
    ("no-effect-anywhere", "disable_allgather", {"disable_allgather": True}, {}, {}),
    (
        "no-effect-bf16-optimizer",
        "zero_optimization.overlap_comm",
        {**BF16, **zero(1, overlap_comm=True), **FULL_SUMS},
        {**BF16, **zero(2, overlap_comm=True), **FULL_SUMS},
        {},
    ),
    (
        "no-effect-bf16-optimizer",
        "zero_optimization.round_robin_gradients",
        {**BF16, **zero(1, round_robin_gradients=True), **FULL_SUMS},
        {**BF16, **zero(1, round_robin_gradients=True, offload_optimizer=CPU), **FULL_SUMS},
        {},
    ),
    (
        "no-effect-bf16-update",
        "bf16.immediate_grad_update",
        {**bf16(immediate_grad_update=True), **zero(2)},
        {**bf16(immediate_grad_update=True), **zero(1), **FULL_SUMS},
        {},
    ),
    (
        "no-effect-overflow-check",
        "bf16.check_grad_overflow",
        {**bf16(check_grad_overflow=False), **zero(3)},
        {**bf16(check_grad_overflow=False), **zero(2)},
        {},
    ),
    (
        "no-effect-overflow-check",
        "bf16.check_grad_overflow",
        {**bf16(check_grad_overflow=False), **zero(1), **FULL_SUMS},
        {**bf16(check_grad_overflow=False), **zero(1)},
        {},
    ),
    (
        "bf16-optimizer-norm",
        "zero_optimization.compute_grad_norm",
        {**BF16, **zero(1, compute_grad_norm=False), **FULL_SUMS, "gradient_clipping": 0},
        {**BF16, **zero(2, compute_grad_norm=False), **FULL_SUMS, "gradient_clipping": 0},
        {},
    ),
    (
        "odd-bucket",
        "zero_optimization.allgather_bucket_size",
        zero(2, allgather_bucket_size=99_999_999),
        zero(2, allgather_bucket_size=100_000_000),
        {},
    ),
    (
        "huge-bucket",
        "zero_optimization.reduce_bucket_size",
        zero(2, reduce_bucket_size=5e9),
        zero(2, reduce_bucket_size=5e8),
        {},
    ),
    (
        "no-prefetch",
        "zero_optimization.stage3_prefetch_bucket_size",
        zero(3, stage3_prefetch_bucket_size=0),
        zero(3, stage3_prefetch_bucket_size=1),
        {},
    ),
    (
        "unpinned-offload",
        "zero_optimization.offload_optimizer.pin_memory",
        offload(pin_memory=False),
        offload(),
        {},
    ),
    (
        "unpinned-offload",
        "zero_optimization.offload_param.pin_memory",
        zero(3, offload_param={**NVME, "nvme_path": "nvme", "pin_memory": False}),
        zero(3, offload_param={**NVME, "nvme_path": "nvme"}),
        {"device": "cuda"},
    ),
    (
        "batch-world",
        "train_batch_size",
        BATCH,
        {**BATCH, "train_batch_size": 12},
        {"world_size": 3},
    ),
    (
        "batch-one-world",
        "train_batch_size",
        {**BATCH, "gradient_accumulation_steps": 4},
        BATCH,
        {},
    ),
    (
        "batch-missing",
        "gradient_accumulation_steps",
        {"gradient_accumulation_steps": 4},
        {"gradient_accumulation_steps": 4, "train_micro_batch_size_per_gpu": 1},
        {},
    ),
    ("zero-missing", "zero_optimization", {}, zero(0), HF),
    ("trainer-clipping", "gradient_clipping", {}, {"gradient_clipping": "auto"}, HF),
    (
        "trainer-half-at-stage-0",
        "bf16.enabled",
        {"bf16": {"enabled": "auto"}, **zero(0)},
        {"bf16": {"enabled": "auto"}, **zero(1)},
        HF,
    ),
    # What the schema itself finds.
    ("unknown-key", "zero_optimisation", {"zero_optimisation": {}}, zero(0), {}),
    (
        "misplaced-key",
        "offload_optimizer",
        {**zero(2), "offload_optimizer": CPU},
        offload(),
        {},
    ),
    (
        "misplaced-key",
        "zero_optimization.aio",
        zero(3, aio={"queue_depth": 16}),
        {**zero(3), "aio": {"queue_depth": 16}},
        {},
    ),
    (
        "torch-scheduler",
        "scheduler.type",
        {**scheduler("CosineAnnealingLR", T_max=9), **zero(2)},
        scheduler("CosineAnnealingLR", T_max=9),
        {},
    ),
    (
        "schedule-without-rate",
        "scheduler.params.warmup_max_lr",
        {**adam(lr=3e-4), **scheduler("WarmupDecayLR", total_num_steps=9)},
        {**adam(lr=3e-4), **scheduler("WarmupDecayLR", total_num_steps=9, warmup_max_lr=3e-4)},
        {},
    ),
    ("comment-key", "_comment", {"_comment": "mine"}, {"dump_state": False}, {}),
    ("removed-key", "amp", {"amp": {"enabled": False}}, {**BF16, **zero(1)}, {}),
    (
        "deprecated-key",
        "zero_optimization.cpu_offload",
        zero(2, cpu_offload=True),
        zero(2, offload_optimizer=CPU),
        {},
    ),
    (
        "beside-params",
        "optimizer.lr",
        {"optimizer": {"type": "AdamW", "lr": 0.001}},
        {"optimizer": {"type": "AdamW", "params": {"lr": 0.001}}},
        {},
    ),
    ("wrong-type", "bf16.enabled", {"bf16": {"enabled": "yes"}}, {**BF16, **zero(1)}, {}),
    ("wrong-value", "zero_optimization.stage", zero(4), zero(3), {}),
    (
        "auto-value",
        "train_micro_batch_size_per_gpu",
        {"train_micro_batch_size_per_gpu": "auto"},
        {"train_micro_batch_size_per_gpu": 4},
        {},
    ),
    (
        "auto-unfilled",
        "zero_optimization.sub_group_size",
        zero(3, sub_group_size="auto"),
        zero(3, reduce_bucket_size="auto"),
        HF,
    ),
    (
        "no-effect-bf16-optimizer",
        "zero_optimization.reduce_scatter",
        {**BF16, **zero(1, reduce_scatter=False), **FULL_SUMS},
        {**BF16, **zero(1, reduce_scatter=True), **FULL_SUMS},
        {},
    ),
    (
        "no-effect-at-stage",
        "zero_optimization.zero_hpz_partition_size",
        zero(2, zero_hpz_partition_size=8),
        zero(3, zero_hpz_partition_size=8),
        RUN,
    ),
]
