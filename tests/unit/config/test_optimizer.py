"""The optimizer section: keys by type, defaults, what each message says."""

from __future__ import annotations

import json

import pytest

from ds_llama.config import load_run
from ds_llama.config.optimizer import TYPES, AdamW, Kind
from ds_llama.config.resolve import resolve
from ds_llama.errors import ConfigErrors


def errors(tree, **section):
    with pytest.raises(ConfigErrors) as caught:
        load_run({**tree, "optimizer": section})
    return {error.where: error for error in caught.value.errors}


def test_every_kind_has_a_class_and_a_default_of_everything():
    assert set(TYPES) == set(Kind.__args__)
    for kind, cls in TYPES.items():
        assert cls().type == kind
        assert cls.__doc__


@pytest.mark.parametrize("kind", TYPES)
def test_a_type_comes_back_from_its_resolved_run(tree, kind):
    rows = [{"parameters": ["*.embed_tokens.*"], "lr": 1e-4, "gradient_clipping": 0.5}]
    run = load_run({**tree, "optimizer": {"type": kind, "groups": rows}})
    assert isinstance(run.optimizer, TYPES[kind])
    written = json.loads(json.dumps(resolve(run, 2).to_json()))
    assert load_run(written).optimizer == run.optimizer


def test_the_type_is_adamw_unless_it_is_said(tree):
    assert load_run({**tree, "optimizer": {"lr": 1e-3}}).optimizer == AdamW(lr=1e-3)
    run = load_run({**tree, "optimizer": None}, "optimizer.type=SGD", "optimizer.momentum=0.5")
    assert run.optimizer.momentum == 0.5


def test_a_key_of_another_type_names_the_keys_there_are(tree):
    error = errors(tree, momentum=0.9)["run:optimizer.momentum"]
    assert error.what == "unknown key 'momentum'"
    assert error.remedy.startswith("known names: betas, clip_value, decay_steps, eps, groups, lr")
    error = errors(tree, type="SGD", nesterv=True)["run:optimizer.nesterv"]
    assert error.remedy == "did you mean 'nesterov'?"


def test_an_unknown_type_names_the_types(tree):
    found = errors(tree, type="Adam", betas=[0.9, 0.95])
    assert list(found) == ["run:optimizer.type"]
    assert found["run:optimizer.type"].what.startswith("'Adam': input should be 'AdamW', 'SGD'")


@pytest.mark.parametrize(
    ("section", "where", "what"),
    [
        ({"groups": [{"parameters": []}]}, "groups.0.parameters", "the list is empty"),
        ({"groups": [{"parameters": ["x"], "lr": -1}]}, "groups.0.lr", "greater than or equal"),
        ({"groups": [{"parameters": "x"}]}, "groups.0.parameters", "valid list"),
        ({"groups": [{"parameter": ["x"]}]}, "groups.0.parameter", "unknown key"),
        ({"clip_value": 0}, "clip_value", "greater than 0"),
        ({"type": "SGD", "momentum": 1.0}, "momentum", "less than 1"),
        ({"type": "Muon", "lr": 0}, "lr", "greater than 0"),
    ],
)
def test_messages(tree, section, where, what):
    assert what in errors(tree, **section)[f"run:optimizer.{where}"].what


@pytest.mark.parametrize(("kind", "forced"), [("AdamW", True), ("SGD", False)])
def test_an_offloaded_optimizer_of_torch_is_let_through(tree, kind, forced):
    tree |= {"deepspeed": "zero2_offload", "optimizer": {"type": kind}}
    assert resolve(load_run(tree), 2).deepspeed["zero_force_ds_cpu_optimizer"] is forced
