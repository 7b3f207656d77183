from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ds_llama.config import LlamaConfig, preset, presets
from ds_llama.errors import CallError, ConfigError, ConfigErrors

PUBLISHED = {
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-33b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
    "tinyllama-1.1b": 1_100_048_384,
}
SMALL = {"debug", "quickstart", "tiny"}


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_parameter_counts_are_the_published_ones(name, count):
    assert preset(name).num_parameters == count


def test_every_preset_has_a_published_count_or_is_small():
    assert set(presets()) == set(PUBLISHED) | SMALL
    assert 10_000_000 < preset("quickstart").num_parameters < 20_000_000
    assert preset("tiny").num_parameters < 200_000


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError) as caught:
        preset("lama-2-7b")
    assert caught.value.remedy == "did you mean 'llama-2-7b'?"


def problems(**keys):
    with pytest.raises(ConfigErrors) as caught:
        LlamaConfig(**keys)
    return caught.value.errors


def test_every_problem_is_reported_at_once():
    found = problems(hidden_sise=64, hidden_size="64", vocab_size=0, hidden_act="gelu")
    assert {error.where for error in found} == {
        "LlamaConfig:hidden_sise",
        "LlamaConfig:hidden_size",
        "LlamaConfig:vocab_size",
        "LlamaConfig:hidden_act",
    }
    remedies = {error.where.split(":")[1]: error.remedy for error in found}
    assert remedies["hidden_sise"] == "did you mean 'hidden_size'?"
    assert remedies["hidden_size"] == "write a whole number"
    assert remedies["vocab_size"] == "write a value greater than 0"
    assert remedies["hidden_act"] == "write one of 'silu'"


def test_key_value_heads_must_divide_the_heads():
    (error,) = problems(num_attention_heads=6, num_key_value_heads=4, hidden_size=96)
    assert error.what == "num_key_value_heads (4) does not divide num_attention_heads (6)"
    assert error.remedy == "take one of 1, 2, 3, 6"


def test_hidden_size_must_divide_into_heads_unless_head_dim_is_given():
    (error,) = problems(hidden_size=100, num_attention_heads=3)
    assert error.what == "hidden_size (100) is not a multiple of num_attention_heads (3)"
    config = LlamaConfig(hidden_size=100, num_attention_heads=3, head_dim=64)
    assert config.attention_size == 192


def test_an_odd_head_dim_is_refused():
    (error,) = problems(head_dim=63)
    assert "head_dim (63) is odd" in error.what
    assert "hidden_size 4096 over 32 heads is 128" in error.remedy


def test_it_is_frozen_and_filled():
    config = LlamaConfig(hidden_size=64, num_attention_heads=4)
    assert (config.num_key_value_heads, config.head_dim) == (4, 16)
    with pytest.raises(ValidationError, match="frozen"):
        config.hidden_size = 128


def test_a_config_json_of_the_wild_loads():
    raw = {
        "_name_or_path": "x",
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "pretraining_tp": 4,
        "auto_map": {},
        "max_sequence_length": 2048,
        "unsloth_fixed": True,
        "pad_token_id": -1,
        "rope_scaling": None,
        "quantization_config": None,
    }
    config = LlamaConfig.from_hf(raw)
    assert config == LlamaConfig()
    assert config.pad_token_id is None


@pytest.mark.parametrize(
    ("raw", "where", "what"),
    [
        ({"model_type": "mistral"}, "model_type", "model_type is 'mistral'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config", "are quantized"),
        ({"hidden_act": "gelu"}, "hidden_act", "should be 'silu'"),
        ({"hiden_size": 64}, "hiden_size", "unknown key 'hiden_size'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor", "a part of each head"),
    ],
)
def test_what_is_no_llama_is_refused(raw, where, what):
    with pytest.raises(ConfigErrors) as caught:
        LlamaConfig.from_hf(raw)
    assert caught.value.where == f"config.json:{where}"
    assert what in caught.value.what


def test_from_hf_reads_files_and_folders(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(preset("llama-3.1-8b").to_hf()))
    assert LlamaConfig.from_hf(tmp_path) == LlamaConfig.from_hf(str(file)) == preset("llama-3.1-8b")
    file.write_text('{"vocab_size": 0}')
    with pytest.raises(ConfigErrors) as caught:
        LlamaConfig.from_hf(tmp_path)
    assert caught.value.where == f"{file}:vocab_size"
    with pytest.raises(CallError):
        LlamaConfig.from_hf(tmp_path / "nowhere")


@pytest.mark.parametrize("name", presets())
def test_to_hf_comes_back(name):
    assert LlamaConfig.from_hf(json.loads(json.dumps(preset(name).to_hf()))) == preset(name)


SIZES = st.builds(
    dict,
    vocab_size=st.integers(1, 500),
    head_dim=st.integers(1, 8).map(lambda n: 2 * n),
    num_key_value_heads=st.integers(1, 4),
    group=st.integers(1, 4),
    hidden_size=st.integers(1, 64),
    intermediate_size=st.integers(1, 64),
    num_hidden_layers=st.integers(1, 5),
    tie_word_embeddings=st.booleans(),
    attention_bias=st.booleans(),
    mlp_bias=st.booleans(),
)


def build(sizes):
    sizes = {**sizes}
    heads = sizes.pop("group") * sizes["num_key_value_heads"]
    return LlamaConfig(**sizes, num_attention_heads=heads)


@given(SIZES)
def test_counts_add_up(sizes):
    config = build(sizes)
    rest = config.num_parameters - config.num_hidden_layers * config.num_block_parameters
    copies = 1 if config.tie_word_embeddings else 2
    assert rest == copies * config.vocab_size * config.hidden_size + config.hidden_size
    assert config.num_matmul_parameters <= config.num_parameters


@given(SIZES, st.integers(1, 1000))
def test_flops_grow_with_the_sequence_by_attention_alone(sizes, length):
    config = build(sizes)
    step = config.flops_per_token(length + 1) - config.flops_per_token(length)
    assert step == 6 * config.num_hidden_layers * config.attention_size
    assert config.flops_per_token(0) == 6 * config.num_matmul_parameters


def test_flops_of_llama_2_7b():
    """6 x 6,607,077,376 matmul weights and 6 x 32 layers x 4096 x 4096 for attention."""
    assert preset("llama-2-7b").flops_per_token(4096) == 6 * 6_607_077_376 + 6 * 32 * 4096 * 4096
