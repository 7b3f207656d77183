from __future__ import annotations

import pytest

from ds_llama.config import LlamaConfig
from ds_llama.config.rope import RopeParameters
from ds_llama.errors import ConfigErrors

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_both_forms_mean_the_same():
    old = {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}
    new = {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}}
    older = {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}}
    configs = {LlamaConfig.from_hf(raw).rope_parameters for raw in (old, new, older)}
    assert configs == {RopeParameters(rope_type="llama3", rope_theta=5e5, **LLAMA3)}


@pytest.mark.parametrize("scaling", [None, {}])
def test_no_scaling_is_the_default_type(scaling):
    rope = LlamaConfig.from_hf({"rope_scaling": scaling, "rope_theta": 1e6}).rope_parameters
    assert rope == RopeParameters(rope_theta=1e6)


def test_theta_may_stand_outside_the_new_form():
    raw = {"rope_theta": 1e6, "rope_parameters": {"rope_type": "default"}}
    assert LlamaConfig.from_hf(raw).rope_parameters.rope_theta == 1e6


def test_the_original_length_defaults_to_the_models():
    raw = {"max_position_embeddings": 4096, "rope_scaling": {"type": "yarn", "factor": 2.0}}
    rope = LlamaConfig.from_hf(raw).rope_parameters
    assert rope.original_max_position_embeddings == 4096


def test_a_file_may_carry_keys_that_its_type_ignores():
    raw = {"rope_scaling": {"type": "linear", "factor": 2.0, "finetuned": True, "beta_fast": 3}}
    rope = LlamaConfig.from_hf(raw).rope_parameters
    assert rope.to_hf() == {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}


@pytest.mark.parametrize("kind", ["longrope", "proportional", "llama4", 3])
def test_other_types_are_refused_by_name(kind):
    with pytest.raises(ConfigErrors) as caught:
        LlamaConfig.from_hf({"rope_scaling": {"rope_type": kind, "factor": 2.0}})
    assert caught.value.what == f"rope_type {kind!r} is not supported"
    assert caught.value.where == "config.json:rope_scaling.rope_type"


@pytest.mark.parametrize(
    ("rope", "what"),
    [
        ({"rope_type": "linear"}, "rope_type 'linear' needs 'factor'"),
        ({"rope_type": "default", "factor": 2.0}, "rope_type 'default' has no 'factor'"),
        ({"rope_type": "linear", "factor": 0.5}, "0.5: input should be greater than or equal to 1"),
        (
            {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4.0},
            "high_freq_factor (4) must be greater than low_freq_factor (4)",
        ),
    ],
)
def test_what_a_type_needs(rope, what):
    with pytest.raises(ConfigErrors) as caught:
        LlamaConfig(rope_parameters=rope)
    assert caught.value.what == what
    assert caught.value.where.startswith("LlamaConfig:rope_parameters.")


def test_rope_that_is_no_object():
    with pytest.raises(ConfigErrors, match="rope_scaling is 'linear', not an object"):
        LlamaConfig.from_hf({"rope_scaling": "linear"})
