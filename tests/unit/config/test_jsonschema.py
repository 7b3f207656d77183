"""The schemas for editors: valid themselves, and of the same opinion as lint where they can be."""

from __future__ import annotations

import copy
import json
import random
import sys

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from ds_llama.config import jsonschema, preset, presets, shipped
from ds_llama.config.deepspeed import SCHEMA, check
from ds_llama.config.keys import Key
from tests.unit.config.lint_seeds import VALUES, mutated
from tests.unit.config.test_lint_in_the_wild import TRAINER

DEEPSPEED = Draft202012Validator(jsonschema.of_deepspeed())
AUTO = Draft202012Validator(jsonschema.of_deepspeed("huggingface"))
RUN = Draft202012Validator(jsonschema.of_run())
LEAST = {"model": {"preset": "tiny"}, "data": {"train": "x"}}
# What the schema finds, of all codes; the rest depends on another key.
FORMAL = {
    *("unknown-key", "misplaced-key", "comment-key", "removed-key", "beside-params"),
    *("wrong-type", "wrong-value", "auto-value"),
}


@pytest.mark.parametrize("validator", [DEEPSPEED, AUTO, RUN])
def test_it_is_a_schema_of_2020_12(validator):
    Draft202012Validator.check_schema(validator.schema)
    assert json.loads(json.dumps(validator.schema)) == validator.schema


@pytest.mark.parametrize("name", shipped.names())
def test_every_shipped_json_is_valid(name):
    content = json.loads(shipped.find(name).read_text())
    DEEPSPEED.validate(content)
    RUN.validate({**LEAST, "deepspeed": content})
    assert not DEEPSPEED.is_valid({**content, "zero_optimisation": {}})
    assert not RUN.is_valid({**LEAST, "deepspeed": {**content, "zero_optimisation": {}}})


@pytest.mark.parametrize("path", shipped.runs(), ids=lambda path: path.name)
def test_every_shipped_run_is_valid(path):
    content = json.loads(path.read_text())
    RUN.validate(content)
    assert not RUN.is_valid({**content, "modle": {}})


@pytest.mark.parametrize("name", presets())
def test_every_preset_may_be_inline(name):
    RUN.validate({**LEAST, "model": preset(name).to_hf()})


@pytest.mark.parametrize("name", TRAINER)
def test_a_file_of_the_trainer_is_valid_where_auto_is(name):
    AUTO.validate(TRAINER[name])
    assert not AUTO.is_valid({**TRAINER[name], "dump_state": "auto"})
    assert not DEEPSPEED.is_valid(TRAINER[name])


@pytest.mark.parametrize(
    "part",
    [
        {"optimizer": {"lr": -1}},
        {"optimizer": {"type": "SGD", "betas": [0.9, 0.95]}},
        {"optimizer": {"type": "Sgd"}},
        {"train": {"steps": 0}},
        {"train": {"step": 1}},
        {"data": {"train": []}, "deepspeed": 3},
        {"model": {"hidden": 64}},
        {"model": 3},
        {"deepspeed": {"optimizer": {"type": "ADAMW", "params": {"learning_rate": 1}}}},
        {"deepspeed": {"scheduler": {"type": "WarmupLR", "params": {"warmup": 1}}}},
    ],
)
def test_a_broken_run_is_not_valid(part):
    assert not RUN.is_valid({**LEAST, **part})


@pytest.mark.parametrize(
    "part",
    [
        {},
        {"optimizer": None},
        {"optimizer": {"type": "Muon", "adam_lr": 1e-4}},
        {"data": {"train": ["a", {"path": "b", "weight": 2}]}},
        {"train": {"steps": 1e3}},
        {"deepspeed": "zero2"},
        {"deepspeed": {"optimizer": {"type": "ADAMW", "params": {"lr": 1}}}},
        {"deepspeed": {"zero_optimization": {"stage": "auto", "offload_param": None}}},
    ],
)
def test_a_good_run_is_valid(part):
    RUN.validate({**LEAST, **part})


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([json.loads(shipped.find(name).read_text()) for name in shipped.names()]),
    st.integers(0, 2**32),
    VALUES,
)
def test_schema_and_lint_agree_about_what_is_formal(tree, seed, value):
    # Python's own limit is lint's, and no editor's business
    assume(not isinstance(value, int | float) or value <= sys.maxsize)
    tree = mutated(copy.deepcopy(tree), random.Random(seed), value)
    found = {problem.code for problem in check(tree)} & FORMAL
    assert DEEPSPEED.is_valid(tree) == (not found), found


def test_defaults_and_words_are_for_the_editor():
    zero = DEEPSPEED.schema["properties"]["zero_optimization"]["properties"]
    assert zero["stage"]["maximum"] == 3
    assert zero["reduce_bucket_size"]["default"] == 500_000_000
    assert zero["offload_param"]["description"] == "read at ZeRO stage 3"
    assert zero["allgather_partitions"]["description"] == "read nowhere"
    assert zero["cpu_offload"]["deprecated"] is True
    assert DEEPSPEED.schema["properties"]["train_batch_size"]["anyOf"][0]["minimum"] == 1
    assert all(isinstance(key, Key) or key.keys or key.free for key in SCHEMA.keys.values())
