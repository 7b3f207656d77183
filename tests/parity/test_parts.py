"""The lower rungs of the ladder: norm, rope tables, rotation, attention, MLP, block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama import modeling_llama as hf

from ds_llama.model.norm import RMSNorm
from ds_llama.model.rope import RotaryTable, rotate
from tests.parity.oracle import (
    CASES,
    ROPES,
    TOKENS,
    difference,
    differences,
    exact_norms,
    huggingface,
    ours,
    small_config,
    worst,
)


def pair(name: str, dtype: torch.dtype = torch.float64, attention: str = "sdpa") -> Any:
    config = small_config(**CASES[name])
    theirs = huggingface(config, dtype, attention)
    return ours(theirs, config).model, theirs.model


def hidden(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, TOKENS, 64, generator=generator).to(dtype)
    upstream = torch.randn(2, TOKENS, 64, generator=generator).to(dtype)
    return x.clone().requires_grad_(), x.requires_grad_(), upstream


def backward_differences(mine: Any, theirs: Any, got: Any, wanted: Any) -> dict[str, float]:
    (x_mine, out_mine), (x_theirs, out_theirs), upstream = got, wanted, hidden()[2]
    upstream = upstream.to(out_mine.dtype)
    out_mine.backward(upstream)
    out_theirs.backward(upstream)
    return {
        "out": difference(out_mine.detach(), out_theirs.detach()),
        "grad x": difference(x_mine.grad, x_theirs.grad),
        **differences(mine, theirs),
    }


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)],
)
def test_norm(dtype: torch.dtype, tolerance: float) -> None:
    mine, theirs = RMSNorm(64, 1e-5).to(dtype), hf.LlamaRMSNorm(64, 1e-5).to(dtype)
    with torch.no_grad():
        theirs.weight.copy_(torch.linspace(0.5, 1.5, 64))
    mine.load_state_dict(theirs.state_dict())
    a, b, _ = hidden(dtype)
    with exact_norms(dtype):
        found = backward_differences(mine, theirs, (a, mine(a)), (b, theirs(b)))
    assert worst(found)[0] < tolerance
    if dtype != torch.float64:
        assert found["out"] == 0  # the same operations in the same order


def test_twin_norm_without_eps() -> None:
    mine, theirs = RMSNorm(64, 1e-9), hf.LlamaRMSNorm(64, 1e-5)
    mine.load_state_dict(theirs.state_dict())
    x = 1e-3 * hidden(torch.float32)[0]
    assert difference(mine(x), theirs(x)) > 1e-3


@pytest.mark.parametrize("length", [24, 32, 33, 96, 1000])
@pytest.mark.parametrize("name", ROPES)
def test_tables_are_equal_to_the_bit(name: str, length: int) -> None:
    config = small_config(rope_parameters=ROPES[name])
    cos, sin = RotaryTable(config)(0, length, torch.device("cpu"))
    rotary = huggingface(config, torch.float32).model.rotary_emb
    wanted_cos, wanted_sin = rotary(torch.zeros(1), torch.arange(length)[None])
    half = config.head_dim // 2
    assert cos.dtype == sin.dtype == torch.float32
    assert torch.equal(cos.squeeze(1), wanted_cos[0, :, :half])
    assert torch.equal(sin.squeeze(1), wanted_sin[0, :, :half])


@pytest.mark.parametrize("name", ["linear", "dynamic", "llama3", "yarn"])
def test_twin_tables_of_another_kind(name: str) -> None:
    cos, _ = RotaryTable(small_config(rope_parameters=ROPES[name]))(0, 96, torch.device("cpu"))
    plain, _ = RotaryTable(small_config())(0, 96, torch.device("cpu"))
    assert difference(cos, plain) > 1e-2


def rotation(swap: bool) -> float:
    config = small_config()
    cos, sin = RotaryTable(config)(0, TOKENS, torch.device("cpu"))
    wide = torch.cat((cos, cos), -1).squeeze(1)[None], torch.cat((sin, sin), -1).squeeze(1)[None]
    q = torch.randn(2, TOKENS, 4, 16, dtype=torch.float64)
    k = torch.randn(2, TOKENS, 2, 16, dtype=torch.float64)
    wanted = hf.apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), *wide)
    got = rotate(q, k, cos, -sin if swap else sin)
    return max(difference(a.transpose(1, 2), b.double()) for a, b in zip(got, wanted, strict=True))


def test_rotation() -> None:
    assert rotation(swap=False) < 1e-12


def test_twin_rotation_the_other_way() -> None:
    assert rotation(swap=True) > 1e-1


def run_part(part: str, name: str, dtype: torch.dtype, attention: str, shift: int = 0) -> float:
    """Worst difference of one part's output and gradients; `shift` moves our positions apart."""
    mine, theirs = pair(name, dtype, attention)
    tables = mine.rotary(0, TOKENS, torch.device("cpu"))
    positions = torch.arange(TOKENS)[None]
    a, b, _ = hidden(dtype)
    with exact_norms(dtype):
        wide = theirs.rotary_emb(b, positions)
        block, their_block = mine.layers[1], theirs.layers[1]
        if shift:
            tables = tuple(table.roll(shift, 0) for table in tables)
        if part == "attention":
            mask = torch.full((TOKENS, TOKENS), -torch.inf, dtype=dtype).triu(1)[None, None]
            mask = mask if attention == "eager" else None
            wanted = their_block.self_attn(b, wide, mask)[0]
            parts = block.self_attn, their_block.self_attn
            got = block.self_attn(a, *tables)
        elif part == "mlp":
            parts = block.mlp, their_block.mlp
            got, wanted = block.mlp(a), their_block.mlp(b)
        else:
            parts = block, their_block
            got, wanted = block(a, *tables), their_block(b, position_embeddings=wide)
        return worst(backward_differences(*parts, (a, got), (b, wanted)))[0]


@pytest.mark.parametrize("name", ["mha", "gqa", "mqa", "biases", "head_dim"])
@pytest.mark.parametrize("part", ["attention", "mlp", "block"])
def test_part_in_float64(part: str, name: str) -> None:
    assert run_part(part, name, torch.float64, "sdpa") < 1e-10


@pytest.mark.parametrize("name", ["mha", "gqa", "mqa"])
def test_attention_against_eager(name: str) -> None:
    assert run_part("attention", name, torch.float32, "eager") < 1e-5


@pytest.mark.parametrize("part", ["attention", "block"])
def test_twin_part_at_other_positions(part: str) -> None:
    assert run_part(part, "gqa", torch.float64, "sdpa", shift=1) > 1e-3


def test_twin_mlp_of_another_layer() -> None:
    mine, theirs = pair("mha")
    x = hidden()[0]
    assert difference(mine.layers[0].mlp(x), theirs.layers[1].mlp(x)) > 1e-1
