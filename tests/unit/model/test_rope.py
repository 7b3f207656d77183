"""Rotary tables stay exact in fp32 wherever they are made, and are made once."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.partition_parameters import zero_wrapper_for_fp_tensor_constructor
from torch._subclasses.fake_tensor import FakeTensorMode

from ds_llama.config import LlamaConfig, preset
from ds_llama.model.llama import Llama
from ds_llama.model.rope import RotaryTable, inexact_tables, inv_freq

CPU = torch.device("cpu")
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}
CONSTRUCTORS = ("tensor", "empty", "zeros", "ones", "full", "arange", "eye", "randn")


def config(**overrides: Any) -> LlamaConfig:
    small = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "vocab_size": 40,
        "max_position_embeddings": 64,
    }
    return LlamaConfig.from_hf({**small, **overrides})


def under_zero_init(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """torch's constructors as `zero.Init` leaves them: floating results are rounded."""
    for name in CONSTRUCTORS:
        wrapped = zero_wrapper_for_fp_tensor_constructor(getattr(torch, name), dtype, CPU)
        monkeypatch.setattr(torch, name, wrapped)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama-2-7b", "llama-3.1-8b"])
def test_exact_under_zero_init(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = RotaryTable(preset(name))
    wanted = RotaryTable(preset(name))(0, 4096, CPU)
    with monkeypatch.context() as patched:
        under_zero_init(patched, dtype)
        assert torch.ones(1).dtype == dtype
        got = table(0, 4096, CPU)
    assert all(
        a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(got, wanted, strict=True)
    )
    assert table.is_exact()


def test_exact_for_a_dynamic_rope_under_a_bf16_default(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = RotaryTable(config(rope_parameters=DYNAMIC))(0, 200, CPU)
    monkeypatch.setattr(torch, "get_default_dtype", torch.get_default_dtype)
    torch.set_default_dtype(torch.bfloat16)
    try:
        got = RotaryTable(config(rope_parameters=DYNAMIC))(0, 200, CPU)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_a_cast_model_keeps_its_table() -> None:
    model = Llama(config(), seed=0)
    ids = torch.arange(40)[None]
    model(ids)
    table = model.model.rotary(0, 40, CPU)
    model.bfloat16()(ids)
    assert model.model.rotary(0, 40, CPU)[0].data_ptr() == table[0].data_ptr()
    assert table[0].dtype == torch.float32
    assert inexact_tables(model) == []


def test_twin_a_rounded_table_is_named() -> None:
    model = Llama(config(), seed=0)
    model(torch.arange(40)[None])
    rotary = model.model.rotary
    rotary._tables = tuple(table.bfloat16().float() for table in rotary._tables)
    assert inexact_tables(model) == ["model"]


def test_one_table_for_all_layers_steps_and_shorter_sequences(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []
    compute = RotaryTable.compute

    def counted(self: RotaryTable, positions: torch.Tensor, length: int) -> Any:
        made.append(len(positions))
        return compute(self, positions, length)

    monkeypatch.setattr(RotaryTable, "compute", counted)
    model = Llama(config(num_hidden_layers=3), seed=0)
    for length in (33, 40, 33, 20, 64, 64):
        model(torch.arange(length)[None] % 40)
    assert made == [64]
    model(torch.zeros(1, 65, dtype=torch.int64))
    assert made == [64, 128]


def test_dynamic_follows_the_running_length() -> None:
    table = RotaryTable(config(rope_parameters=DYNAMIC))
    short, _ = table(0, 64, CPU)
    long, _ = table(0, 100, CPU)
    again, _ = table(0, 64, CPU)
    assert not torch.equal(short, long[:64])
    assert torch.equal(short, again)


def test_given_positions() -> None:
    table = RotaryTable(config())
    positions = torch.tensor([[3, 1, 60], [0, 0, 2]])
    cos, sin = table.at(positions)
    wanted_cos, wanted_sin = table(0, 64, CPU)
    assert torch.equal(cos, wanted_cos[positions])
    assert torch.equal(sin, wanted_sin[positions])


def test_attention_temperature_of_yarn() -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    scales = {
        1.1386294: rope,  # 0.1 ln 4 + 1
        1.5: {**rope, "attention_factor": 1.5},
        1.0648216: {**rope, "mscale": 1.0, "mscale_all_dim": 0.5},
    }
    for wanted, parameters in scales.items():
        _, scale = inv_freq(config(rope_parameters=parameters).rope_parameters, 16, 64, 64)
        assert scale == pytest.approx(wanted, abs=1e-6)


def test_copies_and_pickles_without_the_table() -> None:
    model = Llama(config(), seed=0)
    model(torch.arange(40)[None])
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.model.rotary._tables is None
        ids = torch.arange(40)[None]
        assert torch.equal(twin(ids).logits, model(ids).logits)


def test_a_table_of_fake_tensors_is_not_used_outside() -> None:
    table = RotaryTable(config())
    with FakeTensorMode():
        fake, _ = table(0, 8, CPU)
        assert table(0, 8, CPU)[0].untyped_storage()._cdata == fake.untyped_storage()._cdata
    real, _ = table(0, 8, CPU)
    assert type(real) is torch.Tensor
    assert torch.equal(real[0], torch.ones(1, 8))
