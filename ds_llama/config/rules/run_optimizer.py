"""The run's own optimizer under this DeepSpeed JSON: what 0.19.8 cannot do with it."""

from __future__ import annotations

from collections.abc import Iterator

from ds_llama.config.optimizer import OptimizerConfig
from ds_llama.config.problems import Problem
from ds_llama.config.rules import Context

_OFFLOAD = "zero_optimization.offload_optimizer"


def _section(context: Context) -> OptimizerConfig | None:
    return context.run.optimizer if context.run is not None else None


def adamw_only(context: Context) -> Iterator[Problem]:
    """stage3.py:316 asserts DeepSpeedCPUAdam for a ratio; ZenFlow and SuperOffload bring an Adam of
    their own; bf16 states are a setting of DeepSpeed's Adams (ops/adam)."""
    section = _section(context)
    if section is None or section.type == "AdamW":
        return
    features = {
        f"{_OFFLOAD}.ratio": context.get(f"{_OFFLOAD}.ratio", 1.0) < 1,
        f"{_OFFLOAD}.super_offload": context.get(f"{_OFFLOAD}.super_offload", False),
        "zero_optimization.zenflow": context.has("zero_optimization.zenflow"),
        "bf16.bf16_optimizer_states": context.get("bf16.bf16_optimizer_states", False),
    }
    for key in [key for key, used in features.items() if used]:
        yield Problem(
            "adamw-only",
            "error",
            key,
            f"{key.rsplit('.', 1)[-1]} works with AdamW only, and optimizer.type is {section.type}",
            'remove it, or write "type": "AdamW" in the run\'s optimizer',
        )


def forced_optimizer(context: Context) -> Iterator[Problem]:
    """runtime/engine.py:2342."""
    section, forced = _section(context), context.get("zero_force_ds_cpu_optimizer", False)
    if section is None or section.type == "AdamW" or context.offload("offload_optimizer") is None:
        return
    if forced:
        yield Problem(
            "forced-cpu-optimizer",
            "error",
            "zero_force_ds_cpu_optimizer",
            f"{section.type} on the host is torch's own here, and this key has DeepSpeed refuse it",
            "remove the key, or write false",
        )


def two_clippings(context: Context) -> Iterator[Problem]:
    """Both would act, one upon the other's result.

    Under Muon DeepSpeed's norm is, without offload, that of the orthogonalised updates, which are
    far above 1 whatever the gradient is: every step is then divided by it (stage3.py:2897).
    """
    section, norm = _section(context), context.get("gradient_clipping", 0.0)
    if section is None or not section.clips_itself or not norm:
        return
    if section.type == "Muon":
        own = "Muon: the norm would be of its orthogonalised updates and not of the gradient"
        instead = "for AdamW's share give a row of optimizer.groups a gradient_clipping"
    elif section.clips_by_group:
        own = "the norms of optimizer.groups"
        instead = 'for the rest add a last row {"parameters": ["*"], "gradient_clipping": …}'
    else:
        own, instead = "optimizer.clip_value", "or remove optimizer.clip_value"
    yield Problem(
        "two-clippings",
        "error",
        "gradient_clipping",
        f"gradient_clipping ({norm:g}) does not go with {own}",
        'write "gradient_clipping": 0 (on the command line deepspeed.gradient_clipping=0); '
        + instead,
    )


def clipping_obstacles(context: Context) -> Iterator[Problem]:
    section = _section(context)
    if section is None or not (section.clips_by_group or section.clip_value is not None):
        return
    half = str(context.get("torch_autocast.dtype", "bfloat16")).removeprefix("torch.")
    obstacles = {
        "zero_optimization.zenflow": context.has("zero_optimization.zenflow"),
        f"{_OFFLOAD}.super_offload": context.get(f"{_OFFLOAD}.super_offload", False),
        "compile.deepcompile": context.get("compile.deepcompile", False),
        "torch_autocast.dtype": context.enabled("torch_autocast")
        and half in ("fp16", "float16", "half"),
    }
    if section.clips_by_group:
        obstacles["tensor_parallel.autotp_size"] = context.get("tensor_parallel.autotp_size", 1) > 1
    name = "optimizer.groups[].gradient_clipping" if section.clips_by_group else "clip_value"
    for key in [key for key, met in obstacles.items() if met]:
        yield Problem(
            "clipping-obstacle",
            "error",
            key,
            f"{name} cannot see the gradient under {key}",
            f"remove {name} and write gradient_clipping, or remove {key.rsplit('.', 1)[-1]}",
        )


def muon(context: Context) -> Iterator[Problem]:
    """Clamping the update that ZeRO puts in the gradient's place would undo what Muon is; momentum
    on NVMe is not tested here."""
    section = _section(context)
    if section is None or section.type != "Muon":
        return
    if section.clip_value is not None:
        yield _muon("optimizer.type", f"clip_value ({section.clip_value:g})", "remove clip_value")
    for name in ("offload_optimizer", "offload_param"):
        if context.offload(name) == "nvme":
            key = f"zero_optimization.{name}.device"
            yield _muon(key, f"{name} on nvme", 'write "device": "cpu"')


def muon_scatter(context: Context) -> Iterator[Problem]:
    """stage3.py:360 raises. At stage 2 in half precision with fp32 accumulation the gradients that
    AdamW's parameters have on other ranks are lost without a word (stage_1_and_2.py:1244: a group
    of Muon has no fp32 buffer, and what shares a bucket with it is not copied)."""
    section = _section(context)
    ours = section is not None and section.type == "Muon"
    theirs = str(context.get("optimizer.type", "")).lower() == "muon"
    # A run of ours has the key filled in where it is not written.
    scatter = context.get("zero_optimization.reduce_scatter", not ours)
    affected = context.stage == 3 or (context.stage == 2 and context.half_precision is not None)
    if (ours or theirs) and affected and scatter:
        what = f"reduce_scatter at ZeRO stage {context.stage}"
        key = "zero_optimization.reduce_scatter"
        yield _muon(key, what, 'write "reduce_scatter": false')


def _muon(key: str, what: str, remedy: str) -> Problem:
    return Problem("muon", "error", key, f"{what} does not go with Muon", remedy)


def json_adagrad(context: Context) -> Iterator[Problem]:
    """stage_1_and_2.py:947, stage3.py:1358: an IndexError at the first update."""
    kind = str(context.get("optimizer.type", "")).lower()
    host = context.offload("offload_optimizer") is not None
    if kind == "adagrad" and context.stage > 0 and not host and context.run is not None:
        yield Problem(
            "json-adagrad",
            "error",
            "optimizer.type",
            "ZeRO replaces torch's Adagrad by one with a single group of parameters, and a run has "
            "two, with and without decay",
            'write "optimizer": {"type": "Adagrad"} in the run instead',
        )


def json_lion(context: Context) -> Iterator[Problem]:
    """ops/lion/fused_lion.py is CUDA's; ops/op_builder/cpu has none."""
    kind = str(context.get("optimizer.type", "")).lower()
    host = context.offload("offload_optimizer") is not None
    if kind == "lion" and context.device == "cpu" and not host:
        yield Problem(
            "needs-gpu",
            "error",
            "optimizer.type",
            "DeepSpeed's Lion on the device is a CUDA kernel",
            'write "optimizer": {"type": "Lion"} in the run, which needs none',
        )
