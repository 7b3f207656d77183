"""Each rule: (code, key, a JSON that triggers it, one that does not, what else is known)."""

from __future__ import annotations

from ds_llama.config import load_run, preset

BF16 = {"bf16": {"enabled": True}}
FP16 = {"fp16": {"enabled": True}}
CPU = {"device": "cpu"}
NVME = {"device": "nvme"}


def zero(stage, **keys):
    return {"zero_optimization": {"stage": stage, **keys}}


def offload(**keys):
    return zero(2, offload_optimizer={**CPU, **keys})


def adam(kind="AdamW", **params):
    return {"optimizer": {"type": kind, "params": {"lr": 1e-3, **params}}}


def ckpt(**keys):
    return {"activation_checkpointing": keys}


def scheduler(kind, **params):
    return {"scheduler": {"type": kind, "params": params}}


TINY = {"model": preset("tiny")}
ON_CPU = {"device": "cpu"}
RUN = {
    "dialect": "run",
    "run": load_run({"model": {"preset": "tiny"}, "data": {"train": "x"}, "train": {"steps": 9}}),
}
CONTIGUOUS = {"contiguous_memory_optimization": True}
FULL_ACCUMULATION = {"data_types": {"grad_accum_dtype": "fp32"}}
HALF_ACCUMULATION = {"data_types": {"grad_accum_dtype": "bf16"}}
ZENFLOW = {"select_strategy": "step", "select_interval": 4}

# (code, key, a JSON that triggers it, one that does not, what else is known)
CASES = [
    ("half-at-stage-0", "bf16.enabled", BF16, {**BF16, **zero(1)}, {}),
    ("half-at-stage-0", "fp16.enabled", {**FP16, **zero(0)}, {"fp16": {"enabled": False}}, {}),
    ("fp16-and-bf16", "fp16.enabled", {**BF16, **FP16, **zero(1)}, {**FP16, **zero(1)}, {}),
    (
        "autocast-and-half",
        "torch_autocast.enabled",
        {**BF16, **zero(1), "torch_autocast": {"enabled": True}},
        {"torch_autocast": {"enabled": True}},
        {},
    ),
    (
        "master-weights-stage",
        "bf16.bf16_master_weights_and_grads",
        {"bf16": {"bf16_master_weights_and_grads": True}},
        {"bf16": {"bf16_master_weights_and_grads": True}, **zero(1)},
        {},
    ),
    (
        "master-weights-offload",
        "fp16.fp16_master_weights_and_grads",
        {"fp16": {"fp16_master_weights_and_grads": True}, **zero(2)},
        {"fp16": {"fp16_master_weights_and_grads": True}, **offload()},
        {},
    ),
    (
        "bf16-states-alone",
        "bf16.bf16_optimizer_states",
        {"bf16": {"bf16_optimizer_states": True}, **zero(1)},
        {"bf16": {"bf16_optimizer_states": True, "bf16_master_weights_and_grads": True}, **zero(1)},
        {},
    ),
    (
        "param-dtype",
        "data_types.param_dtype",
        {**BF16, **zero(1), "data_types": {"param_dtype": "fp16"}},
        {**BF16, **zero(1), "data_types": {"param_dtype": "bfloat16"}},
        {},
    ),
    ("accumulation-dtype", "data_types.grad_accum_dtype", HALF_ACCUMULATION, FULL_ACCUMULATION, {}),
    (
        "accumulation-in-half",
        "data_types.grad_accum_dtype",
        {**BF16, **zero(1), **HALF_ACCUMULATION, "gradient_accumulation_steps": 2},
        {**BF16, **zero(1), **FULL_ACCUMULATION, "gradient_accumulation_steps": 2},
        {},
    ),
    (
        "autocast-and-quantized",
        "zero_optimization.zero_quantized_weights",
        {**zero(3, zero_quantized_weights=True), "torch_autocast": {"enabled": True}},
        {**zero(3), "torch_autocast": {"enabled": True}},
        {},
    ),
    (
        "no-effect-at-stage",
        "zero_optimization.offload_param",
        zero(2, offload_param=CPU),
        zero(2, offload_param={"device": "none"}),
        {},
    ),
    (
        "no-effect-at-stage",
        "zero_optimization.stage3_prefetch_bucket_size",
        zero(2, stage3_prefetch_bucket_size=7e7),
        zero(2, stage3_prefetch_bucket_size=5e7),
        {},
    ),
    (
        "no-effect-at-stage",
        "zero_optimization.round_robin_gradients",
        zero(3, round_robin_gradients=True),
        zero(3, round_robin_gradients=False),
        {},
    ),
    (
        "no-effect-at-stage",
        "zero_optimization.offload_optimizer.super_offload",
        offload(super_offload=True),
        offload(super_offload=False),
        {},
    ),
    (
        "no-effect-at-stage",
        "zero_optimization.offload_optimizer",
        zero(0, offload_optimizer=CPU),
        zero(1, offload_optimizer=CPU),
        {},
    ),
    (
        "legacy-stage-1",
        "zero_optimization.legacy_stage1",
        zero(1, legacy_stage1=True),
        zero(1, legacy_stage1=False),
        {},
    ),
    ("two-spellings", "bfloat16", {**BF16, "bfloat16": {}, **zero(1)}, {**BF16, **zero(1)}, {}),
    (
        "two-spellings",
        "zero_optimization.max_live_parameters",
        zero(3, max_live_parameters=1, stage3_max_live_parameters=2),
        zero(3, max_live_parameters=1),
        {},
    ),
    (
        "no-gradient-norm",
        "zero_optimization.compute_grad_norm",
        zero(1, compute_grad_norm=False),
        {**zero(1, compute_grad_norm=False), "gradient_clipping": 0},
        {},
    ),
    (
        "no-scaling-with-reduce-scatter",
        "prescale_gradients",
        {**zero(1), "prescale_gradients": True},
        {**zero(1, reduce_scatter=False), "prescale_gradients": True},
        {},
    ),
    (
        "no-scaling-with-reduce-scatter",
        "gradient_predivide_factor",
        {**zero(3), "gradient_predivide_factor": 2},
        {**zero(3), "gradient_predivide_factor": 1},
        {},
    ),
    (
        "summed-gradients",
        "gradient_allreduce_op",
        {**zero(3), "gradient_allreduce_op": "sum"},
        {**zero(2), "gradient_allreduce_op": "sum"},
        {},
    ),
    (
        "summed-gradients",
        "gradient_allreduce_op",
        {**zero(2), "gradient_allreduce_op": "sum"},
        {**zero(2), "gradient_allreduce_op": "mean"},
        RUN,
    ),
    (
        "nvme-without-path",
        "zero_optimization.offload_param.nvme_path",
        zero(3, offload_param=NVME),
        zero(3, offload_param={**NVME, "nvme_path": "nvme"}),
        {},
    ),
    (
        "no-effect-without-nvme",
        "zero_optimization.offload_optimizer.pipeline_read",
        offload(pipeline_read=True),
        zero(2, offload_optimizer={**NVME, "nvme_path": "nvme", "pipeline_read": True}),
        {},
    ),
    (
        "no-effect-without-nvme",
        "aio",
        {**offload(), "aio": {"queue_depth": 16}},
        {**zero(3, offload_param={**NVME, "nvme_path": "nvme"}), "aio": {"queue_depth": 16}},
        {},
    ),
    (
        "super-offload-device",
        "zero_optimization.offload_optimizer.super_offload",
        zero(3, offload_optimizer={"super_offload": True}),
        zero(3, offload_optimizer={**CPU, "super_offload": True}),
        {},
    ),
    (
        "zenflow-offload",
        "zero_optimization.zenflow",
        zero(2, zenflow=ZENFLOW),
        zero(2, zenflow=ZENFLOW, offload_optimizer=CPU),
        {},
    ),
    (
        "zenflow-interval",
        "zero_optimization.zenflow.select_interval",
        zero(2, zenflow={"select_strategy": "step"}, offload_optimizer=CPU),
        zero(2, zenflow={"select_strategy": "auto"}, offload_optimizer=CPU),
        {},
    ),
    (
        "zenflow-interval",
        "zero_optimization.zenflow.select_interval",
        zero(2, zenflow={**ZENFLOW, "update_interval": 5}, offload_optimizer=CPU),
        zero(2, zenflow={**ZENFLOW, "update_interval": 4}, offload_optimizer=CPU),
        {},
    ),
    (
        "zenflow-interval",
        "zero_optimization.zenflow.select_interval",
        zero(2, zenflow={"select_interval": 5}, offload_optimizer=CPU),
        zero(2, zenflow={"select_interval": "auto"}, offload_optimizer=CPU),
        {},
    ),
    (
        "pinned-without-gpu",
        "zero_optimization.offload_optimizer.pin_memory",
        offload(pin_memory=True),
        offload(pin_memory=False),
        ON_CPU,
    ),
    (
        "needs-gpu",
        "zero_optimization.zero_quantized_gradients",
        zero(3, zero_quantized_gradients=True),
        zero(3),
        ON_CPU,
    ),
    ("optimizer-type", "optimizer.type", adam("AdmW"), adam("adamw"), {}),
    ("optimizer-type", "optimizer.type", adam("OneBitAdam"), adam("Lion"), {}),
    ("optimizer-type", "optimizer.type", {"optimizer": {"params": {}}}, adam(), {}),
    ("scheduler-type", "scheduler.type", scheduler("WarmupLr"), scheduler("WarmupLR"), {}),
    ("scheduler-type", "scheduler.type", {"scheduler": {"params": {}}}, {}, {}),
    (
        "scheduler-params",
        "scheduler.params",
        {"scheduler": {"type": "WarmupLR"}},
        scheduler("WarmupLR"),
        {},
    ),
    (
        "scheduler-params",
        "scheduler.params.total_num_steps",
        scheduler("WarmupDecayLR"),
        scheduler("WarmupDecayLR", total_num_steps=9),
        {},
    ),
    (
        "scheduler-length",
        "scheduler.params.total_num_steps",
        scheduler("WarmupDecayLR", total_num_steps=10),
        scheduler("WarmupDecayLR", total_num_steps=9),
        RUN,
    ),
    (
        "amsgrad",
        "optimizer.params.amsgrad",
        adam(amsgrad=True),
        adam(amsgrad=True, torch_adam=True),
        {},
    ),
    ("betas", "optimizer.params.betas", adam(betas=[0.9]), adam(betas=[0.9, 0.95]), {}),
    ("betas", "optimizer.params.betas", adam(betas=[0.9, 1.0]), adam(betas=[0.0, 0.95]), {}),
    (
        "lamb-loss-scale",
        "optimizer.type",
        {**adam("Lamb"), **BF16, **zero(1), "zero_allow_untested_optimizer": True},
        {**adam("Lamb"), **FP16, **zero(1), "zero_allow_untested_optimizer": True},
        {},
    ),
    (
        "untested-optimizer",
        "optimizer.type",
        {**adam("SGD"), **zero(1)},
        {**adam("SGD"), **zero(1), "zero_allow_untested_optimizer": True},
        {},
    ),
    (
        "batch-product",
        "train_batch_size",
        {"train_batch_size": 7, "train_micro_batch_size_per_gpu": 2},
        {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 2},
        {},
    ),
    (
        "no-prefetch",
        "zero_optimization.stage3_max_live_parameters",
        zero(3, stage3_max_live_parameters=0),
        zero(3, stage3_max_live_parameters=1e9),
        {},
    ),
    (
        "tiny-sub-groups",
        "zero_optimization.sub_group_size",
        zero(3, sub_group_size=0),
        zero(3, sub_group_size=1e8),
        {},
    ),
    (
        "bucket-above-model",
        "zero_optimization.reduce_bucket_size",
        zero(2, reduce_bucket_size=5e8),
        zero(2, reduce_bucket_size=100_000),
        TINY,
    ),
    (
        "persistence-above-matrix",
        "zero_optimization.stage3_param_persistence_threshold",
        zero(3, stage3_param_persistence_threshold=2048),
        zero(3, stage3_param_persistence_threshold=2047),
        TINY,
    ),
    (
        "tiny-reduce-bucket",
        "zero_optimization.reduce_bucket_size",
        zero(2, reduce_bucket_size=1000),
        zero(2, reduce_bucket_size=5e7),
        {},
    ),
    ("slow-diagnostics", "wall_clock_breakdown", {"wall_clock_breakdown": True}, {}, {}),
    ("slow-diagnostics", "comms_logger.enabled", {"comms_logger": {"enabled": True}}, {}, {}),
    ("checkpointing-not-called", "activation_checkpointing", ckpt(profile=False), {}, {}),
    (
        "contiguous-without-partition",
        "activation_checkpointing.contiguous_memory_optimization",
        ckpt(**CONTIGUOUS, number_checkpoints=2),
        ckpt(**CONTIGUOUS, number_checkpoints=2, partition_activations=True),
        {},
    ),
    (
        "contiguous-without-number",
        "activation_checkpointing.number_checkpoints",
        ckpt(**CONTIGUOUS, partition_activations=True),
        ckpt(**CONTIGUOUS, number_checkpoints=2, partition_activations=True),
        {},
    ),
    (
        "host-checkpointing-on-cpu",
        "activation_checkpointing.cpu_checkpointing",
        ckpt(cpu_checkpointing=True),
        ckpt(cpu_checkpointing=True, partition_activations=True),
        ON_CPU,
    ),
    (
        "partition-alone",
        "activation_checkpointing.partition_activations",
        ckpt(partition_activations=True),
        {**ckpt(partition_activations=True), "tensor_parallel": {"autotp_size": 2}},
        {},
    ),
    (
        "pipeline-with-zero",
        "pipeline.stages",
        {**zero(2), "pipeline": {"stages": 2}},
        {**zero(1), "pipeline": {"stages": 2}},
        {},
    ),
    (
        "parallel-heads",
        "tensor_parallel.autotp_size",
        {"tensor_parallel": {"autotp_size": 4}},
        {"tensor_parallel": {"autotp_size": 2}},
        TINY,
    ),
    (
        "hpz-world",
        "zero_optimization.zero_hpz_partition_size",
        zero(3, zero_hpz_partition_size=8),
        zero(3, zero_hpz_partition_size=4),
        {"world_size": 12},
    ),
    (
        "not-in-a-run",
        "pipeline.stages",
        {**zero(1), "pipeline": {"stages": 2}},
        {**zero(1), "pipeline": {"stages": "auto"}},
        RUN,
    ),
    (
        "not-in-a-run",
        "managed_gradient_accumulation",
        {"managed_gradient_accumulation": False},
        {"managed_gradient_accumulation": True},
        RUN,
    ),
    (
        "checkpoint-writer",
        "checkpoint.writer",
        {"checkpoint": {"writer": {"type": "fast"}}},
        {"checkpoint": {"writer": None}},
        {},
    ),
    ("secret", "comet.api_key", {"comet": {"api_key": "x"}}, {"comet": {"api_key": None}}, {}),
    (
        "secret",
        "tensorboard.job_name",
        {"tensorboard": {"job_name": "hf_" + "a" * 34}},
        {"tensorboard": {"job_name": "llama"}},
        {},
    ),
    ("changed-default", "gradient_clipping", {}, {"gradient_clipping": 0.0}, {}),
]
