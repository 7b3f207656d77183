"""Pieces that rule cases are put together from."""

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


def fp16(**keys):
    return {**zero(1), "fp16": {"enabled": True, **keys}}


def scheduler(kind, **params):
    return {"scheduler": {"type": kind, "params": params}}


TINY = {"model": preset("tiny")}
ON_CPU = {"device": "cpu"}
RUN = {
    "dialect": "run",
    "run": load_run({"model": {"preset": "tiny"}, "data": {"train": "x"}, "train": {"steps": 9}}),
}
EMA = {
    "dialect": "run",
    "run": load_run({"model": {"preset": "tiny"}, "data": {"train": "x"}, "ema": {}}),
}
REPRODUCIBLE = {
    "dialect": "run",
    "run": load_run(
        {
            "model": {"preset": "tiny"},
            "data": {"train": "x"},
            "optimizer": {},
            "train": {"reproducible": True},
        }
    ),
}
COMPILED = {
    "dialect": "run",
    "run": load_run(
        {"model": {"preset": "tiny"}, "data": {"train": "x"}, "train": {"compile": True}}
    ),
}
SAVING = {
    "dialect": "run",
    "run": load_run(
        {"model": {"preset": "tiny"}, "data": {"train": "x"}, "checkpoint": {"every_steps": 2}}
    ),
}
CONTIGUOUS = {"contiguous_memory_optimization": True}
FULL_ACCUMULATION = {"data_types": {"grad_accum_dtype": "fp32"}}
HALF_ACCUMULATION = {"data_types": {"grad_accum_dtype": "bf16"}}
ZENFLOW = {"select_strategy": "step", "select_interval": 4}

# (code, key, a JSON that triggers it, one that does not, what else is known)
