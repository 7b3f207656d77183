from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ds_llama.errors import CallError, CheckpointError, ConfigError, ModelError
from ds_llama.weights import tensorfile
from ds_llama.weights.convert import convert_folder
from ds_llama.weights.export import export_model
from ds_llama.weights.folder import INDEX, ModelFolder
from ds_llama.weights.load import load_pretrained_, read_config


def _scrambled(model: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    return model


def _equal(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(a, b.to(a.dtype)) for a, b in pairs)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("max_shard_bytes", [4 << 30, 20_000])
def test_what_transformers_saved_is_loaded(
    make_model, tmp_path: Path, tied: bool, max_shard_bytes: int
) -> None:
    config, model = make_model(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path, max_shard_size=max_shard_bytes)
    assert (tmp_path / INDEX).exists() is (max_shard_bytes == 20_000)
    assert read_config(tmp_path) == config
    other = _scrambled(make_model(tie_word_embeddings=tied)[1])
    assert not _equal(other, model)
    load_pretrained_(other, tmp_path)
    assert _equal(other, model)


def test_values_are_cast_to_the_parameters_dtype(make_model, tmp_path: Path) -> None:
    config, model = make_model()
    export_model(model, config, tmp_path / "out")
    other = _scrambled(make_model()[1]).to(torch.bfloat16)
    load_pretrained_(other, tmp_path / "out")
    assert other.dtype == torch.bfloat16
    assert _equal(other, model)


def _rewrite(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    with ModelFolder(folder) as source:
        tensors = {n: source.read(n).view(source.spec(n).shape) for n in source.names}
    change(tensors)
    tensorfile.write(path, tensors.items())


def test_a_tied_head_may_be_there_and_old_rotary_tables_too(make_model, tmp_path: Path) -> None:
    config, model = make_model(tie_word_embeddings=True)
    out = export_model(model, config, tmp_path / "out")

    def add(tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    _rewrite(out, add)
    other = _scrambled(make_model(tie_word_embeddings=True)[1])
    load_pretrained_(other, out)
    assert _equal(other, model)
    _rewrite(out, lambda tensors: tensors.pop("model.embed_tokens.weight"))
    load_pretrained_(_scrambled(other), out)
    assert _equal(other, model)
    again = convert_folder(out, tmp_path / "again")
    load_pretrained_(_scrambled(other), again)
    assert _equal(other, model)
    _rewrite(out, lambda t: t.update({"model.embed_tokens.weight": t["lm_head.weight"] + 1}))
    with pytest.raises(ModelError, match="the folder holds another head") as caught:
        load_pretrained_(_scrambled(other), out)
    assert '"tie_word_embeddings": false' in caught.value.remedy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("lm_head.weight"), "it lacks lm_head.weight"),
        (lambda t: t.update(extra=torch.ones(1)), "the model has no extra"),
        (
            lambda t: [t.pop(n) for n in sorted(t)[:5]] and t.update(a=torch.ones(1)),
            "and 2 more and the model has no a",
        ),
        (
            lambda t: t.update({"lm_head.weight": torch.ones(3, 2)}),
            r"lm_head.weight has shape [3, 2] in the folder and [97, 32] in the model",
        ),
    ],
)
def test_weights_of_another_model_are_refused_before_any_is_set(
    make_model, tmp_path: Path, change, message: str
) -> None:
    config, model = make_model()
    out = export_model(model, config, tmp_path / "out")
    _rewrite(out, change)
    with pytest.raises(ModelError) as caught:
        load_pretrained_(_scrambled(model), out)
    assert message in caught.value.what
    assert caught.value.where == str(out)
    assert "config.json" in caught.value.remedy
    assert all((parameter == 7).all() for parameter in model.parameters())


def test_a_model_under_an_engine_is_refused(make_model, tmp_path: Path) -> None:
    config, model = make_model()
    out = export_model(model, config, tmp_path / "out")
    model.lm_head.weight._hp_mapping = None
    with pytest.raises(ModelError, match="under a DeepSpeed engine already") as caught:
        load_pretrained_(model, out)
    assert "between construction and register" in caught.value.remedy


def test_what_can_be_wrong_with_the_folder(make_model, tmp_path: Path) -> None:
    config, model = make_model()
    out = export_model(model, config, tmp_path / "out", max_shard_bytes=20_000)
    index = json.loads((out / INDEX).read_text())
    with pytest.raises(CallError, match="no such folder of weights") as called:
        load_pretrained_(model, "meta-llama/Llama-3.2-1B")
    assert "download it first" in called.value.remedy

    def fails(message: str, remedy: str = "again") -> None:
        with pytest.raises(CheckpointError, match=message) as caught:
            load_pretrained_(model, out)
        assert remedy in caught.value.remedy

    shard = next(iter(index["weight_map"].values()))
    content = (out / shard).read_bytes()
    (out / shard).write_bytes(content[:-8])
    fails(f"{shard} is cut off")
    (out / shard).unlink()
    fails(f"{INDEX} names {shard}, which is missing")
    index["weight_map"]["lm_head.weight"] = "../model.safetensors"
    (out / INDEX).write_text(json.dumps(index))
    fails("which is outside the folder")
    (out / INDEX).write_text("[]")
    fails("is damaged")
    (out / INDEX).unlink()
    fails("has neither model.safetensors nor", "save_pretrained")
    (out / "pytorch_model.bin").write_bytes(b"")
    fails("pytorch_model.bin is a pickle, which is not read here", "ds-llama import")


def test_an_index_that_names_the_wrong_file(make_model, tmp_path: Path) -> None:
    config, model = make_model()
    out = export_model(model, config, tmp_path / "out", max_shard_bytes=20_000)
    index = json.loads((out / INDEX).read_text())
    other = index["weight_map"]["model.embed_tokens.weight"]
    assert index["weight_map"]["lm_head.weight"] != other
    index["weight_map"]["lm_head.weight"] = other
    (out / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=f"{other} does not hold lm_head.weight"):
        load_pretrained_(model, out)


@pytest.mark.parametrize("tied", [False, True])
def test_new_rows_of_the_vocabulary_are_the_mean_of_the_old(
    make_model, ids: torch.Tensor, tmp_path: Path, tied: bool
) -> None:
    """Beside transformers' own resize, with its new rows set to the mean."""
    config, model = make_model(tie_word_embeddings=tied)
    out = export_model(model, config, tmp_path / "out")
    grown = make_model(tie_word_embeddings=tied, vocab_size=103)[1]
    load_pretrained_(_scrambled(grown), out, grow_vocabulary=True)
    means = [
        module.weight.detach().double().mean(0)
        for module in (model.model.embed_tokens, model.lm_head)
    ]
    model.resize_token_embeddings(103, mean_resizing=False)
    modules = (model.model.embed_tokens, model.lm_head)
    with torch.no_grad():
        for module, mean in zip(modules, means, strict=True):
            module.weight[97:] = mean.float()
        assert torch.equal(grown(ids).logits, model(ids).logits)
    assert _equal(grown, model)
    assert (grown.lm_head.weight is grown.model.embed_tokens.weight) is tied


@pytest.mark.parametrize("columns", [3, 11])
def test_every_slice_of_a_grown_matrix(tmp_path: Path, columns: int) -> None:
    """Ranks' slices of a flat matrix, cut anywhere, beside the whole of it."""
    from ds_llama.weights.load import _elements

    old = torch.randn(5, columns, generator=torch.Generator().manual_seed(0))
    tensorfile.write(tmp_path / "model.safetensors", [("x", old)])
    whole = torch.cat([old, old.double().mean(0).float().expand(4, -1)]).reshape(-1)
    with ModelFolder(tmp_path) as source:
        for start in range(0, whole.numel(), 7):
            for stop in range(start, whole.numel() + 1, 5):
                assert torch.equal(_elements(source, "x", start, stop), whole[start:stop])


def test_a_vocabulary_is_not_resized_unasked_nor_made_smaller(make_model, tmp_path: Path) -> None:
    config, model = make_model()
    out = export_model(model, config, tmp_path / "out")
    for size, grow in ((103, False), (90, True)):
        other = make_model(vocab_size=size)[1]
        message = rf"embed_tokens.weight has shape \[97, 32\] in the folder and \[{size}, 32\]"
        with pytest.raises(ModelError, match=message):
            load_pretrained_(other, out, grow_vocabulary=grow)


def test_quantized_weights_are_refused(make_model, tmp_path: Path) -> None:
    config, model = make_model()
    out = export_model(model, config, tmp_path / "out")
    _rewrite(out, lambda t: t.update({"lm_head.weight": t["lm_head.weight"].to(torch.int8)}))
    with pytest.raises(ModelError, match=r"head\.weight is stored as int8: the weights are") as e:
        load_pretrained_(model, out)
    assert "bf16" in e.value.remedy


def test_config_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CallError):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ConfigError, match="gpt2"):
        read_config(tmp_path)
