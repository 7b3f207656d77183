"""Hugging Face's model under our registration, and `dl.initialize` in a script of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig as HFConfig
from transformers import LlamaForCausalLM

import ds_llama as dl
from ds_llama.errors import ConfigErrors
from ds_llama.trainer.build import construct
from ds_llama.zero import world
from ds_llama.zero.register import register
from ds_llama.zero.step import take_step
from tests.distributed.runs import MODEL, global_batch, make_run, split


def _hugging_face(weights: dict[str, torch.Tensor]) -> LlamaForCausalLM:
    model = LlamaForCausalLM(HFConfig(**MODEL))
    model.load_state_dict(weights)
    return model


def trains_as_ours(folder: Path) -> None:
    """Same weights, same batches: the same losses, norms and counts per token, step by step."""
    size = world.world_size()
    for stage in (1, 3):
        run = make_run(folder, stage=stage, accumulation=2, world=size)
        weights = {n: p.clone() for n, p in construct(run, how="plain").state_dict().items()}
        engines = [register(m, run) for m in (construct(run), _hugging_face(weights))]
        for step in range(3):
            window = split(global_batch(step, 4 * size), 2, world.rank(), size)
            ours, theirs = (take_step(engine, window) for engine in engines)
            assert ours.tokens == theirs.tokens
            assert ours.loss == pytest.approx(theirs.loss, abs=2e-5)
            assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-4)


def recomputes_their_blocks(folder: Path) -> None:
    """The activation_checkpointing section acts on a model that never calls DeepSpeed's."""
    size = world.world_size()
    section = {"activation_checkpointing": {}}
    losses = {}
    for name, more in (("kept", {}), ("recomputed", section)):
        run = make_run(folder, stage=2, world=size, deepspeed=more)
        weights = construct(run, how="plain").state_dict()
        engine = register(_hugging_face(weights), run)
        calls = []
        engine.module.model.layers[0].mlp.register_forward_hook(lambda *_, c=calls: c.append(1))
        window = split(global_batch(0, 2 * size), 2, world.rank(), size)
        losses[name] = [take_step(engine, window).loss for _ in range(2)]
        assert len(calls) == (4 if more else 2)
    assert losses["kept"] == pytest.approx(losses["recomputed"], abs=1e-6)


def initialize_takes_deepspeeds_words(folder: Path) -> None:
    size = world.world_size()
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
        "zero_optimization": {"stage": 2},
    }
    model = dl.Llama(dl.LlamaConfig(**MODEL), seed=0)
    engine, optimizer, loader, scheduler = dl.initialize(model=model, config=config)
    assert (loader, scheduler) == (None, None)
    assert optimizer is engine.optimizer
    batch = split(global_batch(0, 2 * size), 2, world.rank(), size)[0]
    losses = []
    for _ in range(4):
        loss = engine(**batch).loss
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    with pytest.raises(ConfigErrors, match="zero_optimization"):
        dl.initialize(model=model, config=config | {"zero_optimisation": {"stage": 2}})


CELLS = {
    "trains-as-ours": ((1, 2), trains_as_ours),
    "recomputes-their-blocks": ((1,), recomputes_their_blocks),
    "initialize": ((2,), initialize_takes_deepspeeds_words),
}
