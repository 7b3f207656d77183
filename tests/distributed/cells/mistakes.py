"""What the plugin refuses, and how it says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from deepspeed.accelerator import get_accelerator

import ds_llama as dl
from ds_llama.errors import CallError, ConfigError, DataError, ModelError, RunError
from ds_llama.trainer.build import construct
from ds_llama.zero import register as registering
from ds_llama.zero import world
from ds_llama.zero.register import register, resolve_here
from ds_llama.zero.step import take_step
from tests.distributed.runs import MODEL, global_batch, make_run


def a_batch_without_labels(folder: Path) -> None:
    run = make_run(folder, stage=2, world=world.world_size())
    engine = register(construct(run), run)
    batch = global_batch(0, 2)
    batch["labels"].fill_(-100)
    with pytest.raises(DataError, match="no token of the global batch contributes") as caught:
        take_step(engine, [batch])
    assert caught.value.where == "data.train"


def a_stop_is_agreed_on(folder: Path) -> None:
    run = make_run(folder, stage=2, world=world.world_size())
    engine = register(construct(run), run)
    last = world.rank() == world.world_size() - 1
    assert take_step(engine, [global_batch(0, 2)], stop=last) is None
    assert engine.global_steps == 0


def a_rounded_rotary_table(folder: Path) -> None:
    run = make_run(folder, world=world.world_size())
    model = construct(run)
    rounded = tuple(table.bfloat16().float() for table in model.model.rotary(0, 32, world.device()))
    whole = model.model.rotary._tables
    model.model.rotary._tables = tuple(
        torch.cat([r, t[len(r) :]]) for r, t in zip(rounded, whole, strict=True)
    )
    from ds_llama.zero.construct import _check_rotary

    with pytest.raises(ModelError, match="the rotary table of model is not exact in fp32"):
        _check_rotary(model, 32)


def fp16_on_a_processor_without_it(folder: Path) -> None:
    run = make_run(folder, precision="fp16", world=world.world_size())
    supported = get_accelerator().is_fp16_supported
    get_accelerator().is_fp16_supported = lambda: False
    try:
        with pytest.raises(ConfigError, match="this processor has no fast fp16") as caught:
            resolve_here(run)
    finally:
        get_accelerator().is_fp16_supported = supported
    assert caught.value.where.endswith(":fp16.enabled")
    assert '"bf16": {"enabled": true}' in caught.value.remedy


def resolved_files_that_do_not_read_back(folder: Path) -> None:
    resolved = resolve_here(make_run(folder, world=world.world_size()))
    resolved.deepspeed["steps_per_print"] = (1, 2)  # JSON has no tuples
    with pytest.raises(RunError, match="does not read back as it was written"):
        registering._written(resolved)
    with pytest.raises(RunError, match="rank 0 cannot read the resolved file: No such file"):
        registering._read(folder / "absent.json")


def a_script_without_a_model_or_a_json(folder: Path) -> None:
    with pytest.raises(CallError, match="initialize was called without a model"):
        dl.initialize(config={})
    with pytest.raises(CallError, match="no DeepSpeed JSON was given"):
        dl.initialize(model=dl.Llama(dl.LlamaConfig(**MODEL)))


CELLS = {
    "no-labels": ((1, 2), a_batch_without_labels),
    "stop-is-agreed-on": ((2,), a_stop_is_agreed_on),
    "rounded-table": ((1,), a_rounded_rotary_table),
    "fp16": ((1,), fp16_on_a_processor_without_it),
    "resolved-files": ((1,), resolved_files_that_do_not_read_back),
    "script": ((1,), a_script_without_a_model_or_a_json),
}
