"""Logits, loss and every parameter's gradient against Hugging Face, and what must not pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ds_llama.model import llama, loss
from ds_llama.model.llama import Llama
from ds_llama.model.rope import RotaryTable
from tests.parity.oracle import (
    CASES,
    TOKENS,
    compare,
    huggingface,
    ours,
    small_config,
    tokens,
    worst,
)

EXACT = 1e-9


def run(overrides: dict[str, Any], dtype: torch.dtype, attention: str = "sdpa") -> tuple[Any, ...]:
    config = small_config(**overrides)
    theirs = huggingface(config, dtype, attention)
    return ours(theirs, config), theirs, tokens(config)


@pytest.mark.parametrize("name", CASES)
def test_float64(name: str) -> None:
    model, theirs, ids = run(CASES[name], torch.float64)
    found, where = worst(compare(model, theirs, ids, ids))
    assert found < EXACT, where


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["gqa", "tied", "biases", "rope-llama3"])
def test_float32(name: str, attention: str) -> None:
    model, theirs, ids = run(CASES[name], torch.float32, attention)
    found, where = worst(compare(model, theirs, ids, ids))
    assert found < 1e-5, where


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("rope-")])
def test_twin_other_rope(name: str) -> None:
    """Without its scaling (or with one that it lacks) every rope is seen to differ."""
    model, theirs, ids = run(CASES[name], torch.float64)
    other = "rope-linear" if name == "rope-default" else "rope-default"
    model.model.rotary = RotaryTable(small_config(**CASES[other]))
    assert compare(model, theirs, ids, ids)["logits"] > 1e-3


def swap_kv_heads(model: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = model.model.layers[0].self_attn.k_proj.weight.data
    weight.copy_(weight.view(2, -1, 64).flip(0).flatten(0, 1))


def look_ahead(model: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = torch.ones(TOKENS, TOKENS, dtype=torch.bool)[None, None]
    monkeypatch.setattr(llama, "dense_mask", lambda *_: everything)


def wrong_eps(model: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    model.model.layers[0].input_layernorm.eps = 1e-2


def drop_up(model: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    model.model.layers[1].mlp.up_proj.weight.data.fill_(0.1)


def unshifted(model: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "shifted", lambda labels, fill: labels)


def half_gradient(model: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "_scaled", lambda tensor, scale, dtype: 0.5 * scale * tensor)


@pytest.mark.parametrize(
    ("sabotage", "seen_in"),
    [
        (swap_kv_heads, "logits"),
        (look_ahead, "logits"),
        (wrong_eps, "logits"),
        (drop_up, "logits"),
        (unshifted, "loss"),
        (half_gradient, "grad lm_head.weight"),
    ],
)
def test_twin_broken_part(sabotage: Any, seen_in: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, theirs, ids = run(CASES["gqa"], torch.float64)
    sabotage(model, monkeypatch)
    assert compare(model, theirs, ids, ids)[seen_in] > 1e-3


@pytest.mark.parametrize("name", ["mha", "tied", "biases"])
def test_same_keys_and_weights_both_ways(name: str) -> None:
    config = small_config(**CASES[name])
    theirs = huggingface(config, torch.float32)
    model = Llama(config, seed=3)
    assert list(model.state_dict().keys()) == list(theirs.state_dict().keys())
    theirs.load_state_dict(model.state_dict(), strict=True)
    ids = tokens(config)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, theirs(ids).logits, rtol=0, atol=1e-5)
        assert (theirs.lm_head.weight is theirs.model.embed_tokens.weight) == (name == "tied")
        theirs.model.norm.weight.mul_(2)
    with torch.no_grad():
        assert (model(ids).logits - theirs(ids).logits).abs().max() > 1e-2
    model.load_state_dict(theirs.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, theirs(ids).logits, rtol=0, atol=1e-5)


def test_registered_names_are_all_there_is() -> None:
    """No buffers and no extra parameters: the state dict is exactly the parameters."""
    model = Llama(small_config(), seed=0)
    model(tokens(model.config))
    assert list(model.buffers()) == []
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("name", CASES)
def test_config_round_trip(name: str) -> None:
    config = small_config(**CASES[name])
    theirs = huggingface(config).config
    again = type(config).from_hf(theirs.to_dict())
    assert again == config
    assert again.num_parameters == sum(p.numel() for p in huggingface(config).parameters())
