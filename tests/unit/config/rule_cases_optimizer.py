"""Cases of rules about the run's own optimizer."""

from __future__ import annotations

from ds_llama.config import load_run
from tests.unit.config.rule_words import BF16, CPU, NVME, ON_CPU, RUN, adam, offload, zero


def own(**section):
    """What is known when a run has this optimizer."""
    tree = {"model": {"preset": "tiny"}, "data": {"train": "x"}, "deepspeed": {}}
    return {"dialect": "run", "run": load_run({**tree, "optimizer": section})}


ROWS = [{"parameters": ["*"], "gradient_clipping": 0.5}]
SCATTER = {"reduce_scatter": True}
DEEPCOMPILE = {"compile": {"deepcompile": True}}
AUTOCAST = {"torch_autocast": {"enabled": True, "dtype": "float16"}}
TO_NVME = zero(3, offload_optimizer={**NVME, "nvme_path": "/x"})
DEVICE = "zero_optimization.offload_optimizer.device"

CASES = [
    (
        "adamw-only",
        "zero_optimization.offload_optimizer.ratio",
        zero(3, offload_optimizer={**CPU, "ratio": 0.5}),
        zero(3, offload_optimizer={**CPU, "ratio": 1.0}),
        own(type="Lion"),
    ),
    (
        "adamw-only",
        "zero_optimization.offload_optimizer.super_offload",
        zero(3, offload_optimizer={**CPU, "super_offload": True}),
        zero(3, offload_optimizer=CPU),
        own(type="SGD"),
    ),
    (
        "forced-cpu-optimizer",
        "zero_force_ds_cpu_optimizer",
        {**offload(), "zero_force_ds_cpu_optimizer": True},
        {**offload(), "zero_force_ds_cpu_optimizer": False},
        own(type="SGD"),
    ),
    (
        "two-clippings",
        "gradient_clipping",
        {"gradient_clipping": 1.0},
        {"gradient_clipping": 0.0},
        own(clip_value=0.1),
    ),
    ("two-clippings", "gradient_clipping", {"gradient_clipping": 1.0}, {}, own(groups=ROWS)),
    ("two-clippings", "gradient_clipping", {"gradient_clipping": 1.0}, {}, own(type="Muon")),
    (
        "clipping-obstacle",
        "tensor_parallel.autotp_size",
        {"tensor_parallel": {"autotp_size": 2}},
        {"tensor_parallel": {"autotp_size": 1}},
        own(groups=ROWS),
    ),
    ("clipping-obstacle", "compile.deepcompile", DEEPCOMPILE, {}, own(clip_value=0.1)),
    (
        "clipping-obstacle",
        "torch_autocast.dtype",
        AUTOCAST,
        {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}},
        own(clip_value=0.1),
    ),
    ("muon", DEVICE, TO_NVME, offload(), own(type="Muon")),
    (
        "muon",
        "zero_optimization.reduce_scatter",
        zero(3, **SCATTER),
        zero(3),
        own(type="Muon"),
    ),
    (
        "muon",
        "zero_optimization.reduce_scatter",
        {**BF16, **zero(2, **SCATTER)},
        zero(2, **SCATTER),
        own(type="Muon"),
    ),
    (
        "muon",
        "zero_optimization.reduce_scatter",
        {**adam("Muon"), **zero(3)},
        {**adam("Muon"), **zero(3, reduce_scatter=False)},
        {},
    ),
    (
        "json-adagrad",
        "optimizer.type",
        {**adam("Adagrad"), **zero(1)},
        {**adam("Adagrad"), **offload()},
        RUN,
    ),
    ("needs-gpu", "optimizer.type", adam("Lion"), {**adam("Lion"), **offload()}, ON_CPU),
]
