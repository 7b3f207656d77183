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
    run = load_run({**tree, "deepspeed": {}, "optimizer": {"type": kind, "groups": rows}})
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


def test_own_clipping_turns_deepspeed_s_off(tree):
    tree["deepspeed"] = {"zero_optimization": {"stage": 2}}
    rows = [{"parameters": ["*"], "gradient_clipping": 0.5}]
    for section, norm in (({}, 1.0), ({"clip_value": 0.1}, 0.0), ({"groups": rows}, 0.0)):
        resolved = resolve(load_run({**tree, "optimizer": section}), 2)
        assert resolved.deepspeed["gradient_clipping"] == norm


@pytest.mark.parametrize(
    ("section", "what", "remedy"),
    [
        ({"clip_value": 0.1}, "does not go with optimizer.clip_value", "or remove optimizer"),
        (
            {"groups": [{"parameters": ["*"], "gradient_clipping": 0.5}]},
            "gradient_clipping (1) does not go with the norms of optimizer.groups",
            'for the rest add a last row {"parameters": ["*"], "gradient_clipping": …}',
        ),
        ({"type": "Muon"}, "of its orthogonalised updates", "for AdamW's share give a row"),
    ],
)
def test_two_clippings_are_one_error(tree, section, what, remedy):
    (error,) = errors({**tree, "deepspeed": "zero2"}, **section).values()
    assert what in error.what
    assert remedy in error.remedy
    assert error.where.endswith("zero2.json:gradient_clipping")


def test_muon_does_not_clip_by_value(tree):
    (error,) = errors({**tree, "deepspeed": {}}, type="Muon", clip_value=0.1).values()
    assert error.what == "clip_value (0.1) does not go with Muon"


def test_muon_adds_up_in_fp32_and_reduces_whole_gradients(tree):
    tree["deepspeed"] = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 3}}
    for kind, dtype, scatter in (("AdamW", None, True), ("Muon", "fp32", False)):
        deepspeed = resolve(load_run({**tree, "optimizer": {"type": kind}}), 2).deepspeed
        assert deepspeed.get("data_types", {}).get("grad_accum_dtype") == dtype
        assert deepspeed["zero_optimization"]["reduce_scatter"] is scatter


def test_a_row_without_a_base_rate_to_be_a_ratio_of(tree):
    row = {"parameters": ["*"], "lr": 1e-3}
    error = errors(tree, lr=0, groups=[row])["run:optimizer.groups.0.lr"]
    assert error.what == "a row's lr is a ratio of the run's under the schedule, and that is 0"


def test_value_and_rows_are_not_clipped_to_together(tree):
    rows = [{"parameters": ["*"], "gradient_clipping": 0.5}]
    error = errors(tree, clip_value=0.1, groups=rows)["run:optimizer.clip_value"]
    assert "one would clip the other's result" in error.what
