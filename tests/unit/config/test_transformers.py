"""Our configs against transformers: the same networks, the same rotary frequencies."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ds_llama.config import LlamaConfig, preset, presets

ROPES = {
    "plain": {"rope_theta": 10000.0},
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "llama3": {
        "rope_theta": 5e5,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    "yarn-explicit": {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "mscale": 1.0,
            "mscale_all_dim": 0.5,
            "truncate": False,
        }
    },
}
SIZES = {"hidden_size": 128, "num_attention_heads": 4, "max_position_embeddings": 256}


@pytest.mark.parametrize("name", presets())
def test_parameter_counts_are_those_of_transformers(name):
    config = transformers.LlamaConfig(**preset(name).to_hf())
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    assert sum(p.numel() for p in model.parameters()) == preset(name).num_parameters


def test_biases_are_counted():
    ours = LlamaConfig.from_hf({**preset("tiny").to_hf(), "attention_bias": True, "mlp_bias": True})
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**ours.to_hf()))
    assert sum(p.numel() for p in model.parameters()) == ours.num_parameters
    assert ours.num_parameters > preset("tiny").num_parameters


def inv_freq(raw):
    return LlamaRotaryEmbedding(transformers.LlamaConfig(**raw)).inv_freq


@pytest.mark.parametrize("name", ROPES)
def test_rotary_frequencies_survive_the_round_trip(name):
    raw = {**SIZES, **ROPES[name]}
    ours = LlamaConfig.from_hf(raw)
    torch.testing.assert_close(inv_freq(ours.to_hf()), inv_freq(raw), rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in ROPES if name not in ("plain", "dynamic")])
def test_the_rotary_comparison_sees_a_lost_scaling(name):
    """The twin of the test above: without the scaling the frequencies differ."""
    raw = {**SIZES, **ROPES[name]}
    lost = {**SIZES, "rope_theta": raw.get("rope_theta", 10000.0)}
    with pytest.raises(AssertionError):
        torch.testing.assert_close(inv_freq(lost), inv_freq(raw), rtol=0, atol=0)


@pytest.mark.parametrize("name", presets())
def test_presets_round_trip_through_transformers(name):
    theirs = transformers.LlamaConfig(**preset(name).to_hf())
    assert LlamaConfig.from_hf(theirs.to_dict()) == preset(name)
