"""Documents in one row give what they give apart: the loss and every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ds_llama.config import LlamaConfig
from ds_llama.data.collate import collate
from ds_llama.data.sample import IGNORED, Sample
from ds_llama.errors import ModelError
from ds_llama.model import attention
from ds_llama.model.cache import Cache
from ds_llama.model.documents import lengths_of, positions_of
from ds_llama.model.llama import Llama

SMALL = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
# Neighbours of equal length, one token, and more than the halves of `attention` begin at.
ROWS = [(24, 24, 1, 271), (60, 5, 255), (300,)]


ON = torch.arange(320).expand(3, -1)


def build(dtype: torch.dtype = torch.float32, **keys: Any) -> Llama:
    return Llama(LlamaConfig.from_hf({**SMALL, **keys}), seed=0).to(dtype)


def samples() -> list[Sample]:
    draw, made = torch.Generator().manual_seed(3), []
    for lengths in ROWS:
        ids = torch.randint(0, 67, (sum(lengths),), generator=draw).numpy()
        labels, at = ids.copy(), 0
        for length in lengths:
            labels[at] = IGNORED
            at += length
        made.append(Sample(ids, labels, lengths))
    return made


def packed(**changes: Tensor | None) -> dict[str, Tensor]:
    batch = {**collate(samples(), block_causal=True), **changes}
    return {name: tensor for name, tensor in batch.items() if tensor is not None}


def gradients(model: Llama, batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Sum of the losses, and the gradients of that sum."""
    model.zero_grad()
    total = torch.zeros(())
    for batch in batches:
        loss = model(**batch, reduction="sum").loss
        loss.backward()
        total = total + loss.detach().to(total)
    return {"loss": total, **{name: p.grad.float() for name, p in model.named_parameters()}}


def apart(model: Llama) -> dict[str, Tensor]:
    """Every document a call of its own."""
    batches = []
    for ids, labels, lengths in samples():
        ends = torch.tensor(lengths).cumsum(0).tolist()
        for end, length in zip(ends, lengths, strict=True):
            part = slice(end - length, end)
            pair = {"input_ids": ids[part], "labels": labels[part]}
            batches.append({name: torch.from_numpy(row)[None] for name, row in pair.items()})
    return gradients(model, batches)


def worst(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The greatest deviation, relative to the greatest value of its tensor."""
    assert got.keys() == wanted.keys()
    return max(float((got[n] - wanted[n]).abs().max() / wanted[n].abs().max()) for n in wanted)


# In fp32 sums have another order; in bf16 the gradients of documents apart are rounded one by one.
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 2e-6), (torch.bfloat16, 3e-2)])
def test_a_packed_batch_is_its_documents_run_apart(dtype: torch.dtype, close: float) -> None:
    model = build(dtype)
    wanted = apart(model)
    assert worst(gradients(model, [packed()]), wanted) < close


def test_in_fp64_to_the_last_digits() -> None:
    model = build(torch.float64)
    assert worst(gradients(model, [packed()]), apart(model)) < 1e-6  # fp32 tables and sums


@pytest.mark.parametrize(
    "changes",
    [
        {"document_lengths": None, "position_ids": None},  # attention across the borders
        {"document_lengths": None},  # the same: positions alone part nothing
        {"position_ids": ON.flip(-1)},  # apart, but the other way round
        {"labels": torch.from_numpy(samples()[0].input_ids)[None].expand(3, -1)},  # others' tokens
    ],
)
def test_twins_that_must_fail(changes: dict[str, Any]) -> None:
    model = build()
    assert worst(gradients(model, [packed(**changes)]), apart(model)) > 1e-2


def test_positions_that_go_on_within_lengths_rotate_alike() -> None:
    """RoPE is relative: apart, documents may be counted from anywhere."""
    model = build()
    assert worst(gradients(model, [packed(position_ids=ON)]), apart(model)) < 5e-6


def test_positions_follow_from_lengths() -> None:
    model = build()
    with torch.no_grad():
        assert torch.equal(model(**packed(position_ids=None)).loss, model(**packed()).loss)


def test_no_token_sees_another_document() -> None:
    model, batch = build().eval(), packed(labels=None)
    with torch.no_grad():
        before = model(**batch).logits
        batch["input_ids"][0, 24:48] += 1
        batch["input_ids"] %= 67
        changed = (model(**batch).logits != before).any(-1)
    assert changed[0, 24:48].all()
    assert changed.sum() == 24


def test_rows_of_one_document_are_one_causal_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(
        attention, "attend", lambda *a, **k: calls.append(a[0].shape) or torch.zeros_like(a[0])
    )
    ids = torch.zeros(2, 8, dtype=torch.int64)
    with torch.no_grad():
        build()(ids, document_lengths=torch.tensor([[8], [8]]))
        assert calls == [(2, 4, 8, 8)] * 2
        calls.clear()
        build()(ids, document_lengths=torch.tensor([[3, 3, 2], [2, 6, 0]]))
    assert calls == [(2, 4, 3, 8), (2, 4, 2, 8), (1, 4, 6, 8)] * 2


def test_a_dense_mask_gives_the_same() -> None:
    shape = (2, 7, 4, 8)
    q, k, v = (torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(3))
    document = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 1]])
    mask = (document[:, :, None] == document[:, None, :]).tril()[:, None]
    bhtd = [t.transpose(1, 2) for t in (q, k, v)]
    wanted = F.scaled_dot_product_attention(*bhtd, attn_mask=mask).transpose(1, 2)
    got = attention.attend_apart(q, k, v, (3, 2, 2, 1, 6))
    torch.testing.assert_close(got, wanted)


def test_lengths_of_a_batch() -> None:
    batch = packed()
    shape = batch["input_ids"].shape
    lengths = lengths_of(batch["document_lengths"], shape)
    assert lengths == (24, 24, 1, 271, 60, 5, 255, 300, 20)
    positions = positions_of(lengths, shape, torch.device("cpu"))
    assert torch.equal(positions, batch["position_ids"])
    assert lengths_of(torch.tensor([[320], [320], [320]]), shape) is None
    assert lengths_of(None, shape) is None


def test_dynamic_rope_takes_the_longest_document(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the greatest position says, without reading that from the device."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = build(torch.float64, rope_parameters=rope, max_position_embeddings=64)
    rotary = model.model.rotary
    with torch.no_grad():
        told = model(**packed()).loss
        with monkeypatch.context() as patch:
            at = rotary.at
            patch.setattr(rotary, "at", lambda positions, longest: at(positions))
            wanted = model(**packed()).loss
        assert torch.equal(told, wanted)
        rotary.parameters = LlamaConfig.from_hf(SMALL).rope_parameters
        assert not torch.equal(model(**packed()).loss, wanted)


@pytest.mark.parametrize("lengths", [[[3, 2]], [[3, 6]], [[5, 3], [4, 4]], [[9, -1]]])
def test_lengths_that_do_not_fill_the_rows(lengths: list[list[int]]) -> None:
    with pytest.raises(ModelError) as caught:
        build()(torch.zeros(1, 8, dtype=torch.int64), document_lengths=torch.tensor(lengths))
    assert caught.value.where == "document_lengths"
    assert "input_ids has shape (1, 8)" in caught.value.what
    assert "padding included" in caught.value.remedy


@pytest.mark.parametrize("other", ["attention_mask", "past_key_values"])
def test_lengths_beside_what_they_do_not_go_with(other: str) -> None:
    ids = torch.zeros(1, 8, dtype=torch.int64)
    value = torch.ones_like(ids) if other == "attention_mask" else Cache()
    with pytest.raises(ModelError, match=f"document_lengths and {other} are both given"):
        build()(ids, document_lengths=torch.tensor([[4, 4]]), **{other: value})
