"""Which parameter is in which group, and with which settings."""

from __future__ import annotations

from fnmatch import fnmatchcase
from itertools import product

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from ds_llama.config import LlamaConfig
from ds_llama.config.optimizer import TYPES, AdamW, GroupConfig, Muon
from ds_llama.errors import ConfigError
from ds_llama.model.llama import Llama
from ds_llama.model.traits import traits_of
from ds_llama.zero.elementwise import Adagrad, Lion
from ds_llama.zero.optimizer import build, parameter_groups

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 40,
}
MODEL = Llama(LlamaConfig.from_hf(SMALL), seed=0)
NAMES = {id(parameter): name for name, parameter in MODEL.named_parameters()}


def groups_of(section):
    return parameter_groups(MODEL, traits_of(MODEL), section, "run.json")


def names(group):
    return {NAMES[id(parameter)] for parameter in group["params"]}


def rows(*rows):
    return tuple(GroupConfig(**row) for row in rows)


def test_without_rows_the_traits_say_what_is_decayed():
    decayed, undecayed = groups_of(AdamW(weight_decay=0.3))
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.3, 0.0)
    assert all("norm" in name for name in names(undecayed))
    assert names(decayed) | names(undecayed) == set(NAMES.values())
    assert {group["lr_ratio"] for group in (decayed, undecayed)} == {1.0}


def test_the_first_row_that_matches_wins_and_null_keeps_what_was():
    section = AdamW(
        lr=1e-3,
        weight_decay=0.1,
        groups=rows(
            {"parameters": ["*.embed_tokens.*"], "lr": 1e-4, "weight_decay": 0.0},
            {"parameters": ["*embed_tokens*", "*.layers.0.*"], "lr": 2e-3},
        ),
    )
    first, *_ = found = groups_of(section)
    assert first["row"] is None  # the base rate is read from the first group
    by_row = {(g["row"], g["weight_decay"]): g for g in found}
    assert set(by_row) == {(None, 0.1), (None, 0.0), (0, 0.0), (1, 0.1), (1, 0.0)}
    assert names(by_row[0, 0.0]) == {"model.embed_tokens.weight"}
    assert by_row[0, 0.0]["lr_ratio"] == pytest.approx(0.1)
    assert by_row[1, 0.0]["lr"] == 2e-3
    assert names(by_row[1, 0.0]) == {n for n in NAMES.values() if "layers.0" in n and "norm" in n}


PATTERNS = st.sampled_from(["*", "*.layers.0.*", "*norm*", "lm_head*", "*q_proj*"])


@given(st.lists(st.lists(PATTERNS, min_size=1), max_size=3))
def test_every_parameter_is_in_one_group(patterns):
    first = dict.fromkeys(NAMES.values())
    for index, name in product(reversed(range(len(patterns))), first):
        if any(fnmatchcase(name, pattern) for pattern in patterns[index]):
            first[name] = index
    assume(set(range(len(patterns))) <= set(first.values()))
    found = groups_of(AdamW(groups=rows(*({"parameters": row} for row in patterns))))
    members = [id(parameter) for group in found for parameter in group["params"]]
    assert sorted(members) == sorted(NAMES)
    assert all(first[name] == group["row"] for group in found for name in names(group))


def test_a_row_that_matches_nothing_names_the_nearest():
    section = AdamW(groups=rows({"parameters": ["*norm*"]}, {"parameters": ["*.embed_token.*"]}))
    with pytest.raises(ConfigError) as caught:
        groups_of(section)
    assert caught.value.what == "'*.embed_token.*' matches no trainable parameter of the model"
    assert caught.value.where == "run.json:optimizer.groups.1.parameters"
    assert caught.value.remedy.startswith("the nearest names are model.embed_tokens.weight")


def test_a_row_that_is_left_nothing_says_so():
    section = AdamW(groups=rows({"parameters": ["*"]}, {"parameters": ["lm_head.*"]}))
    with pytest.raises(ConfigError, match="every parameter that row 1 matches") as caught:
        groups_of(section)
    assert "the first row that matches a name wins" in caught.value.remedy


def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest():
    found = groups_of(Muon(lr=0.02, adam_lr=1e-3, weight_decay=0.1))
    muon = [group for group in found if group["use_muon"]]
    assert len(muon) == 1
    assert all(name.endswith("_proj.weight") for name in names(muon[0]))
    assert len(names(muon[0])) == 2 * 7
    rest = set().union(*(names(group) for group in found if not group["use_muon"]))
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= rest
    assert {g["lr_ratio"] for g in found if not g["use_muon"]} == {1e-3 / 0.02}
    assert found[0]["use_muon"]  # the base rate is Muon's


@pytest.mark.parametrize("kind", ["SGD", "Lion", "Adagrad"])
def test_a_type_is_built_without_a_compiled_op(kind):
    section = TYPES[kind]()
    for offloaded in (False, True):
        optimizer = build(section, groups_of(section), offloaded=offloaded)
        assert not type(optimizer).__module__.startswith("deepspeed")


@pytest.mark.parametrize("numel", [1, 3, (1 << 16) - 1, (1 << 16) + 5])
def test_blocks_cover_every_element(numel):
    """In blocks, the update is what it is in one piece."""
    torch.manual_seed(0)
    weight, gradient = torch.randn(numel), torch.randn(numel)
    for make in (
        lambda p: Lion([p], 1e-2, (0.9, 0.99), 0.1),
        lambda p: Adagrad([p], 1e-2, 1e-10, 0.1),
    ):
        whole = torch.nn.Parameter(weight.clone())
        parts = [torch.nn.Parameter(part.clone()) for part in weight.split(1000)]
        for parameters, gradients in (([whole], [gradient]), (parts, gradient.split(1000))):
            for parameter, part in zip(parameters, gradients, strict=True):
                parameter.grad = part.clone()
                optimizer = make(parameter)
                optimizer.step()
                optimizer.step()
        assert torch.equal(whole.data, torch.cat([part.data for part in parts]))
        assert not torch.equal(whole.data, weight)
