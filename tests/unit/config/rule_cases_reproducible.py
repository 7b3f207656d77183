"""What `train.reproducible` refuses: (code, key, a JSON that triggers it, one that does not, …)."""

from __future__ import annotations

from tests.unit.config.rule_words import BF16, CPU, FP16, NVME, REPRODUCIBLE, ZENFLOW, adam, zero

_ZERO = "zero_optimization"
_OFFLOAD = f"{_ZERO}.offload_optimizer"
_HALF = {"bf16": {"enabled": True, "bf16_master_weights_and_grads": True}}
_BAD_AND_GOOD = {
    "fp16.enabled": ({**FP16, **zero(2)}, {**BF16, **zero(2)}),
    "torch_autocast.enabled": ({"torch_autocast": {"enabled": True}}, zero(0)),
    "bf16.bf16_master_weights_and_grads": ({**_HALF, **zero(1)}, {**BF16, **zero(1)}),
    "communication_data_type": (
        {"communication_data_type": "bf16"},
        {"communication_data_type": "fp32"},
    ),
    "data_types.grad_accum_dtype": (
        {**BF16, **zero(2), "data_types": {"grad_accum_dtype": "bf16"}},
        {**BF16, **zero(2), "data_types": {"grad_accum_dtype": "fp32"}},
    ),
    "prescale_gradients": ({"prescale_gradients": True}, {"prescale_gradients": False}),
    "gradient_predivide_factor": (
        {"gradient_predivide_factor": 3.0},
        {"gradient_predivide_factor": 1.0},
    ),
    "compile.deepcompile": ({"compile": {"deepcompile": True}}, {"compile": {}}),
    "tensor_parallel.autotp_size": (
        {"tensor_parallel": {"autotp_size": 2}},
        {"tensor_parallel": {"autotp_size": 1}},
    ),
    "sequence_parallel_size": ({"sequence_parallel_size": 2}, {"sequence_parallel_size": 1}),
    "expert_parallel.enabled": ({"expert_parallel": {"enabled": True}}, {}),
    f"{_ZERO}.zenflow": (zero(2, zenflow=ZENFLOW, offload_optimizer=CPU), zero(2)),
    f"{_OFFLOAD}.super_offload": (
        zero(3, offload_optimizer={**CPU, "super_offload": True}),
        zero(3, offload_optimizer=CPU),
    ),
    f"{_OFFLOAD}.ratio": (
        zero(3, offload_optimizer={**CPU, "ratio": 0.5}),
        zero(3, offload_optimizer={**CPU, "ratio": 1.0}),
    ),
    f"{_OFFLOAD}.device": (zero(3, offload_optimizer=NVME), zero(3, offload_optimizer=CPU)),
    f"{_ZERO}.offload_param.device": (zero(3, offload_param=NVME), zero(3, offload_param=CPU)),
    f"{_ZERO}.zero_quantized_gradients": (zero(3, zero_quantized_gradients=True), zero(3)),
    f"{_ZERO}.zero_quantized_weights": (zero(3, zero_quantized_weights=True), zero(3)),
    f"{_ZERO}.zero_hpz_partition_size": (
        zero(3, zero_hpz_partition_size=2),
        zero(3, zero_hpz_partition_size=1),
    ),
    "optimizer": (adam(), {}),
}

CASES = [
    ("not-reproducible", key, bad, good, REPRODUCIBLE) for key, (bad, good) in _BAD_AND_GOOD.items()
]
