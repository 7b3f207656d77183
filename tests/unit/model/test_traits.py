"""Traits: rows cover every parameter, classes are found by base and by path."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig as HFConfig
from transformers import LlamaForCausalLM, Trainer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from ds_llama.config import LlamaConfig
from ds_llama.errors import ModelError
from ds_llama.model import traits as module
from ds_llama.model.llama import Block, Llama
from ds_llama.model.traits import (
    Traits,
    decay_groups,
    parallel_style,
    register_traits,
    traits_of,
)

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 40,
    "attention_bias": True,
    "mlp_bias": True,
}


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_registry", dict(module._registry))
    monkeypatch.setattr(module, "_loaded", set())


def models() -> list[nn.Module]:
    return [Llama(LlamaConfig.from_hf(SMALL), seed=0), LlamaForCausalLM(HFConfig(**SMALL))]


@pytest.mark.parametrize("which", [0, 1])
def test_every_parameter_is_in_one_group(which: int) -> None:
    model = models()[which]
    traits = traits_of(model)
    decayed, undecayed = decay_groups(model, traits)
    names = {id(p): n for n, p in model.named_parameters()}
    assert {names[id(p)] for p in undecayed} == {
        name for name in names.values() if "norm" in name or name.endswith("bias")
    }
    assert all(parameter.dim() == 2 for parameter in decayed)
    assert len(decayed) + len(undecayed) == len(names)


def test_what_decays_in_hugging_faces_model_is_what_its_trainer_decays() -> None:
    model = models()[1]
    decayed, _ = decay_groups(model, traits_of(model))
    names = {id(p): n for n, p in model.named_parameters()}
    theirs = Trainer.get_decay_parameter_names(None, model)
    assert {names[id(p)] for p in decayed} == set(theirs)


def test_classes_of_both_models() -> None:
    ours, theirs = models()
    assert traits_of(ours).block_class is Block
    assert traits_of(theirs).block_class is LlamaDecoderLayer
    assert all(isinstance(layer, traits_of(ours).block_class) for layer in ours.model.layers)


@pytest.mark.parametrize("which", [0, 1])
def test_words_for_the_summed_loss(which: int) -> None:
    model = models()[which]
    ids = torch.arange(40).view(2, 20)
    words = traits_of(model).sum_loss
    mean, total = model(ids, labels=ids).loss, model(ids, labels=ids, **words).loss
    assert total.item() == pytest.approx(38 * mean.item(), rel=1e-5)


def test_parallel_styles_cover_the_block() -> None:
    traits = traits_of(models()[0])
    styles = {name: parallel_style(name, traits) for name, _ in models()[0].named_parameters()}
    assert {name.split(".")[-2] for name, style in styles.items() if style == "column"} == {
        *("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    }
    assert {name.split(".")[-2] for name, style in styles.items() if style == "row"} == {
        *("o_proj", "down_proj")
    }


def test_a_tied_parameter_counts_once_and_a_frozen_one_not() -> None:
    model = Llama(LlamaConfig.from_hf({**SMALL, "tie_word_embeddings": True}), seed=0)
    before = len(decay_groups(model, traits_of(model))[0])
    model.lm_head.weight.requires_grad_(False)
    assert len(decay_groups(model, traits_of(model))[0]) == before - 1
    assert traits_of(model).tied == (("lm_head.weight", "model.embed_tokens.weight"),)


def test_a_parameter_that_no_row_matches_is_named() -> None:
    model = models()[0]
    model.model.layers[1].gain = nn.Parameter(torch.ones(1))
    with pytest.raises(ModelError, match=r"model\.layers\.1\.gain") as caught:
        decay_groups(model, traits_of(model))
    assert "no_decay" in caught.value.remedy
    assert "Llama" in caught.value.where


class Own(nn.Module):
    pass


class Derived(Own):
    pass


def test_a_subclass_has_its_bases_traits_until_it_gets_its_own() -> None:
    register_traits(Own, Traits(decay=("a",)))
    assert traits_of(Derived()).decay == ("a",)
    register_traits(Derived, lambda: Traits(decay=("b",)))
    assert traits_of(Derived()).decay == ("b",)
    assert traits_of(Own()).decay == ("a",)


def test_a_class_given_by_its_path() -> None:
    register_traits(f"{__name__}.Own", Traits(decay=("c",)))
    assert traits_of(Derived()).decay == ("c",)


def test_an_unknown_class_names_the_ways_out() -> None:
    with pytest.raises(ModelError, match=r"no traits are known for .*Own") as caught:
        traits_of(Own())
    assert "register_traits" in caught.value.remedy
    assert "ds_llama.models" in caught.value.remedy


def use_entry_points(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    def found(group: str) -> list[Any]:
        return [EntryPoint("own", value, group)]

    monkeypatch.setattr(module, "entry_points", found)


def register_own() -> None:
    register_traits(Own, Traits(decay=("entry",)))


def test_an_entry_point_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    use_entry_points(monkeypatch, f"{__name__}:register_own")
    assert traits_of(Own()).decay == ("entry",)


def test_a_broken_entry_point_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    use_entry_points(monkeypatch, "no_such_package:register")
    with pytest.raises(ModelError, match=r"entry point 'own' does not load") as caught:
        traits_of(Own())
    assert "no_such_package" in caught.value.where


def test_importing_traits_does_not_import_transformers() -> None:
    import subprocess

    code = "import sys, ds_llama.model.traits; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
