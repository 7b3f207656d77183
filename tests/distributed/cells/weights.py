"""A pretrained folder gives every rank its slice, at any world size; exports give it back.

The long form of what a rank holds meanwhile is `tests.campaigns.pretrained_memory`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import deepspeed
import pytest
import torch
import transformers

from ds_llama.config import load_run
from ds_llama.config.model import LlamaConfig
from ds_llama.errors import CheckpointError, ModelError
from ds_llama.measure.accounting import Account
from ds_llama.trainer.build import construct
from ds_llama.weights.convert import convert_folder
from ds_llama.weights.export import export_model
from ds_llama.weights.load import load_pretrained_
from ds_llama.zero import world
from ds_llama.zero.register import register
from ds_llama.zero.step import take_step
from tests.distributed.runs import MODEL, global_batch, make_run, split
from tests.unit.weights.metas import release

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
    account = Account("cpu")
    with account, account.phase("load"):
        account.track(p for p in loaded.parameters())
        load_pretrained_(loaded, folder / "peer")
    load = account.phases[0].total
    slices = [parameter.ds_tensor.ds_numel for parameter in loaded.parameters()]
    # Beside its share a rank holds the slice that it reads, never a whole parameter.
    assert 0 < load.peak_bytes - load.now_bytes <= 4 * max(slices)
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


def tuned_from_an_import(folder: Path, stage: int) -> None:
    """Meta's parts imported, named in the run with more tokens: the loss is transformers' own."""
    torch.manual_seed(5)
    config = transformers.LlamaConfig(**LlamaConfig(**MODEL).to_hf())
    model = transformers.LlamaForCausalLM(config)
    if world.rank() == 0:
        release(model, folder / "meta", parts=2)
        convert_folder(folder / "meta", folder / "imported")
    torch.distributed.barrier()
    size = world.world_size()
    run = make_run(folder / "run", stage=stage, world=size, micro_batch_size=2)
    source = {"pretrained": str(folder / "imported"), "vocab_size": 131}
    run = load_run(run.model_dump(mode="json") | {"model": source})
    engine = register(construct(run), run)
    batch = global_batch(1, 2 * size)
    found = take_step(engine, split(batch, 2, world.rank(), size)).loss
    with torch.no_grad():
        smaller = model(**batch).loss.item()
        means = [m.weight.mean(0) for m in (model.model.embed_tokens, model.lm_head)]
        model.resize_token_embeddings(131, mean_resizing=False)
        for module, mean in zip((model.model.embed_tokens, model.lm_head), means, strict=True):
            module.weight[128:] = mean
        expected = model(**batch).loss.item()
    assert found == pytest.approx(expected, rel=1e-5)
    assert found != pytest.approx(smaller, rel=1e-4)  # sabotage: the new rows count
    assert engine.ds_llama.resolved.to_json()["model"] == source
    with pytest.raises(ModelError, match="the vocabulary cannot be resized any more") as caught:
        engine.module.resize_token_embeddings(140)
    assert '"vocab_size": N' in caught.value.remedy


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
    "tuned_from_an_import-3": ((2,), partial(tuned_from_an_import, stage=3)),
    "tuned_from_an_import-1": ((1,), partial(tuned_from_an_import, stage=1)),
    "unwritable_export": ((2,), an_export_that_rank_0_cannot_write_fails_everywhere),
    "another_model": ((1,), weights_of_another_model_are_refused),
}
