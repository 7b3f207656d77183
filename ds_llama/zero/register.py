"""Register a model with ZeRO: its traits, recomputation, optimizer and the resolved JSON.

construct ──> register ──> engine
                 │
                 ├─ resolve      every "auto", bucket and batch number; written and read back
                 ├─ traits       decayed and undecayed parameters; strict coverage
                 ├─ recompute    the activation_checkpointing section
                 ├─ optimizer    what the offload needs
                 └─ initialize   the one call to deepspeed.initialize
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from torch import nn

from ds_llama.config.optimizer import OptimizerConfig
from ds_llama.config.resolve import Resolved, resolve
from ds_llama.config.run import Run
from ds_llama.errors import ConfigError, RunError
from ds_llama.measure import accounting
from ds_llama.model.traits import Traits, traits_of
from ds_llama.zero import compiling, ema, recompute, swap, world
from ds_llama.zero import engine as engines
from ds_llama.zero import exact as exactly
from ds_llama.zero import optimizer as optimizers
from ds_llama.zero.clipping import Clipping


@dataclass(frozen=True)
class Registration:
    """What `register` decided; kept on the engine as `engine.ds_llama`."""

    resolved: Resolved
    traits: Traits
    recomputed: bool
    client_optimizer: bool
    exact: exactly.ExactSums | None = None
    clipping: Clipping | None = None


def resolve_here(run: Run) -> Resolved:
    """`resolve` for the world and the kind of device that this process runs on."""
    resolved = resolve(run, world.world_size(), device=get_accelerator().device_name())
    if resolved.dtype == "float16" and not get_accelerator().is_fp16_supported():
        raise ConfigError(
            "fp16 is enabled, and this processor has no fast fp16, so DeepSpeed refuses it",
            where=f"{run.deepspeed_path}:fp16.enabled",
            remedy='write "bf16": {"enabled": true} instead of the fp16 section',
        )
    return resolved


def register(model: nn.Module, run: Run, *, traits: Traits | None = None) -> Any:
    """A `DeepSpeedEngine` around `model`, ready for `train` or for a loop of your own.

    model: from `construct`, or any module with registered traits (or `traits` given here) whose
    forward takes `input_ids` and `labels` and returns an output with `.loss`. Collective.
    Writes the resolved `run.json` and `deepspeed.json` to the run's output folder (rank 0).
    """
    world.join()
    resolved = resolve_here(run)
    config = _written(resolved)
    return initialize(model, resolved, config, traits or traits_of(model))


@accounting.phase("initialise")
def initialize(model: nn.Module, resolved: Resolved, config: dict[str, Any], traits: Traits) -> Any:
    """Apply the traits and call `deepspeed.initialize` with the resolved `config`."""
    section, exact = resolved.run.optimizer, resolved.run.train.reproducible
    if resolved.run.train.compile:
        compiling.apply(model, traits, resolved.stage)
    how, what = config.get("activation_checkpointing"), resolved.run.train.recompute
    recomputed = recompute.apply(model, traits, how, what)
    if section is not None:
        groups = optimizers.parameter_groups(model, traits, section, resolved.run.label)
        offloaded = resolved.offload_optimizer is not None
        chosen: dict[str, Any] = {
            "optimizer": exactly.adamw(section, groups)
            if exact
            else optimizers.build(section, groups, offloaded=offloaded)
        }
        if config.get("bf16", {}).get("bf16_optimizer_states") and offloaded:
            # Read when the moments are made (ops/adam/cpu_adam.py:158).
            chosen["optimizer"].fp32_optimizer_states = False
    else:
        groups = optimizers.json_groups(model, traits, _json_weight_decay(config))
        chosen = {"model_parameters": groups}
    deepspeed.utils.logger.setLevel(logging.WARNING)
    swap.prepare(resolved)
    swap.mend(model)
    engine, *_ = engines.create(model, config, **chosen)
    swap.keep_unaligned(engine)
    clipping = _clip(engine, section) if section is not None else None
    if config.get("compile", {}).get("deepcompile"):
        engine.compile()  # until then DeepSpeed trains as if the key were not there
    if resolved.run.ema is not None:
        ema.keep(engine, resolved.run.ema.decay)
    micro_batches = resolved.global_batch_size // resolved.micro_batch_size
    sums = exactly.apply(engine, micro_batches) if exact else None
    own = section is not None
    engine.ds_llama = Registration(resolved, traits, recomputed, own, sums, clipping)
    return engine


def _clip(engine: Any, section: OptimizerConfig) -> Clipping:
    names = [name for name, _ in engine.module.named_parameters()]
    clipping = Clipping(section, optimizers.rows_of(names, section.groups))
    clipping.install(engine)
    return clipping


def _json_weight_decay(config: dict[str, Any]) -> float:
    params = config.get("optimizer", {}).get("params", {})
    return float(params.get("weight_decay", 0.0))


def _written(resolved: Resolved) -> dict[str, Any]:
    """Write both resolved files (rank 0) and return the DeepSpeed JSON as every rank reads it back.

    Reading back is the proof that the file is what trains: a value that JSON cannot hold, or a
    folder that the ranks do not share, shows here and not in a later resume.
    """
    folder = Path(resolved.run.output)
    files = {"run.json": resolved.to_json(), "deepspeed.json": resolved.deepspeed}
    if world.rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            _replace(folder / name, json.dumps(content, indent=2) + "\n")
    torch.distributed.barrier()
    read = json.loads(_read(folder / "deepspeed.json"))
    if read != resolved.deepspeed:
        raise RunError(
            "the resolved DeepSpeed JSON does not read back as it was written",
            where=str(folder / "deepspeed.json"),
            remedy="give every rank the same output folder, and no second run beside this one",
        )
    return dict(read)


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise RunError(
            f"rank {world.rank()} cannot read the resolved file: {error.strerror}",
            where=str(path),
            remedy="put the output folder on storage that every host shares",
        ) from error
