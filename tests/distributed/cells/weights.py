"""A pretrained folder gives every rank its slice, at any world size; exports give it back."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import deepspeed
import pytest
import torch
import transformers

from ds_llama.config.model import LlamaConfig
from ds_llama.errors import CheckpointError, ModelError
from ds_llama.trainer.build import construct
from ds_llama.weights.export import export_model
from ds_llama.weights.load import load_pretrained_
from ds_llama.zero import world
from tests.distributed.runs import MODEL, make_run

# 131 is prime: no world size divides the embedding, whose last slices are padding at stage 3.
KEYS = {**MODEL, "vocab_size": 131}


def peer(folder: Path, *, tied: bool) -> transformers.LlamaForCausalLM:
    """The same Hugging Face model on every rank, saved to `folder` by rank 0 in several files."""
    config = LlamaConfig(**KEYS, tie_word_embeddings=tied)
    torch.manual_seed(5)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config.to_hf())).eval()
    if world.rank() == 0:
        model.save_pretrained(folder, max_shard_size=50_000)
    torch.distributed.barrier()
    return model


def pretrained_in_and_out(folder: Path, *, tied: bool) -> None:
    """Loaded under zero.Init and exported again: equal bit for bit, and equal logits."""
    expected = peer(folder / "peer", tied=tied)
    model = {"tie_word_embeddings": tied, "vocab_size": 131}
    loaded = construct(make_run(folder, stage=3, world=world.world_size(), model=model))
    load_pretrained_(loaded, folder / "peer")
    named = dict(expected.named_parameters())
    assert [name for name, _ in loaded.named_parameters()] == list(named)
    for name, parameter in loaded.named_parameters():
        padding = parameter.ds_tensor.ds_numel * world.world_size() - parameter.ds_numel
        if padding and world.rank() == world.world_size() - 1:
            assert not parameter.ds_tensor[-padding:].any(), name
        with deepspeed.zero.GatheredParameters([parameter]):
            assert torch.equal(parameter.data, named[name]), name
    out = export_model(loaded, LlamaConfig(**KEYS, tie_word_embeddings=tied), folder / "out")
    torch.distributed.barrier()
    again, info = transformers.LlamaForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    ids = torch.arange(64).view(1, 64)
    with torch.no_grad():
        assert torch.equal(again.eval()(ids).logits, expected(ids).logits)
    torch.distributed.barrier()


def an_export_that_rank_0_cannot_write_fails_everywhere(folder: Path) -> None:
    model = construct(make_run(folder, stage=3, world=world.world_size()))
    config = LlamaConfig(**MODEL)
    if world.rank() == 0:
        (folder / "taken").mkdir(parents=True)
        (folder / "taken" / "thesis.txt").write_text("")
    torch.distributed.barrier()
    with pytest.raises(CheckpointError, match="something else where the export should go"):
        export_model(model, config, folder / "taken")


def weights_of_another_model_are_refused(folder: Path) -> None:
    peer(folder / "peer", tied=False)
    model = construct(make_run(folder, stage=3, world=world.world_size()))
    with pytest.raises(ModelError) as caught:
        load_pretrained_(model, folder / "peer")
    assert "has shape [131, 64] in the folder and [128, 64] in the model" in caught.value.what


CELLS = {
    "pretrained-untied": ((1, 2, 4), partial(pretrained_in_and_out, tied=False)),
    "pretrained-tied": ((2,), partial(pretrained_in_and_out, tied=True)),
    "unwritable_export": ((2,), an_export_that_rank_0_cannot_write_fails_everywhere),
    "another_model": ((1,), weights_of_another_model_are_refused),
}
