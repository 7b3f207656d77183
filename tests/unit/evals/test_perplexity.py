from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from ds_llama.data.sample import Sample
from ds_llama.errors import CallError
from ds_llama.evals.perplexity import Perplexity, evaluate
from ds_llama.model.llama import Llama, LlamaOutput
from tests.unit.evals.models import small, windows


def pair() -> tuple[Llama, transformers.LlamaForCausalLM]:
    """The same weights here and in transformers, in fp64."""
    ours = small()
    config = transformers.LlamaConfig(**ours.config.to_hf())
    theirs = transformers.LlamaForCausalLM(config).double()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs.eval()


@torch.no_grad()
def _by_transformers(model: Any, data: list[np.ndarray[Any, Any]]) -> float:
    """From transformers' fp64 logits; its own loss takes them to fp32 first."""
    ids = torch.from_numpy(np.stack(data))
    logits = model(input_ids=ids).logits[:, :-1]
    return float(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))


def test_equal_to_transformers() -> None:
    ours, theirs = pair()
    data = windows(7)
    found = evaluate(ours, data, micro_batch_size=3)
    assert found.tokens == 7 * 64
    # transformers takes norms to fp32, even those of a double model
    assert found.loss == pytest.approx(_by_transformers(theirs, data), rel=1e-7)
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    # a transformers model is as good as ours, up to its fp32 loss
    assert evaluate(theirs, data, micro_batch_size=2).loss == pytest.approx(found.loss, rel=1e-6)


def test_sabotage_is_seen() -> None:
    ours, theirs = pair()
    data = windows(7)
    expected = _by_transformers(theirs, data)
    with torch.no_grad():
        ours.model.norm.weight.mul_(1.001)
    assert evaluate(ours, data, micro_batch_size=3).loss != pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4, 100])
def test_the_division_into_batches_does_not_matter(micro_batch_size: int) -> None:
    ours = small()
    data = windows(5)
    whole = evaluate(ours, data, micro_batch_size=5)
    found = evaluate(ours, data, micro_batch_size=micro_batch_size)
    assert found.tokens == whole.tokens
    assert found.loss == pytest.approx(whole.loss, rel=1e-12)


def test_max_batches_takes_the_first_ones() -> None:
    ours = small()
    data = windows(9)
    found = evaluate(ours, data, micro_batch_size=2, max_batches=3)
    assert found == evaluate(ours, data[:6], micro_batch_size=2)


def test_mode_and_gradients_are_left_as_they_were() -> None:
    ours = small()
    ours.train()
    evaluate(ours, windows(1), micro_batch_size=1)
    assert ours.training
    assert all(parameter.grad is None for parameter in ours.parameters())
    ours.eval()
    evaluate(ours, windows(1), micro_batch_size=1)
    assert not ours.training


class _Broken(nn.Module):
    """Fails in its second forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.calls = 0

    def forward(self, **inputs: torch.Tensor) -> LlamaOutput:
        self.calls += 1
        if self.calls == 2:
            raise RuntimeError("out of memory")
        return LlamaOutput(loss=self.weight.sum())


def test_a_failure_gives_the_mode_back() -> None:
    model = _Broken()
    with pytest.raises(RuntimeError, match="out of memory"):
        evaluate(model, windows(3), micro_batch_size=1)
    assert model.training


@pytest.mark.parametrize(("count", "max_batches"), [(0, None), (3, 0)])
def test_nothing_to_evaluate_is_an_error(count: int, max_batches: int | None) -> None:
    with pytest.raises(CallError) as caught:
        evaluate(_Broken(), windows(count), micro_batch_size=1, max_batches=max_batches)
    assert caught.value.what == "there is no batch to evaluate"
    assert "a validation shard of at least one window" in caught.value.remedy


def test_a_loss_beyond_floats_is_infinite_perplexity() -> None:
    assert Perplexity(1000.0, 1).perplexity == math.inf
    assert math.isnan(Perplexity(math.nan, 1).perplexity)


_RANK = """
import json, sys
from datetime import timedelta
import torch.distributed as dist
from tests.unit.evals.models import small, windows
from ds_llama.evals.perplexity import evaluate

store, rank, world = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
dist.init_process_group(
    "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(minutes=1)
)
ours = small()
rows = [
    evaluate(ours, windows(count), micro_batch_size=2, max_batches=limit).to_dict()
    for count, limit in ((5, None), (1, None), (9, 3))
]
print("ROWS" + json.dumps(rows))
dist.destroy_process_group()
"""


def test_every_rank_has_the_result_of_all(tmp_path: Path) -> None:
    """5 windows are 3 batches, which 2 ranks cannot share evenly; 1 window is one for both."""
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK, str(tmp_path / "store"), str(rank), "2"],
            env=environment,
            cwd=root,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0]
    first, second = (json.loads(text.partition("ROWS")[2]) for text in outputs)
    assert first == second
    ours = small()
    alone = [
        evaluate(ours, windows(count), micro_batch_size=2, max_batches=limit).to_dict()
        for count, limit in ((5, None), (1, None), (9, 3))
    ]
    for found, expected in zip(first, alone, strict=True):
        assert found["tokens"] == expected["tokens"]
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-12)


class _Documents(list):
    """Rows of documents that are kept apart."""

    block_causal = True


def test_rows_of_documents_are_the_documents_alone() -> None:
    ours, theirs = pair()
    rows = _Documents()
    for ids, lengths in zip(windows(3), [(30, 35), (10, 1, 40), (65,)], strict=True):
        ids = ids[: sum(lengths)]
        labels = ids.copy()
        labels[np.cumsum(lengths) - lengths] = -100
        rows.append(Sample(ids, labels, lengths))
    alone = [part for row in rows for part in np.split(row.input_ids, np.cumsum(row.lengths)[:-1])]
    total = sum(_by_transformers(theirs, [ids]) * (len(ids) - 1) for ids in alone if len(ids) > 1)
    found = evaluate(ours, rows, micro_batch_size=2)
    assert found.tokens == sum(len(ids) - 1 for ids in alone)
    assert found.loss == pytest.approx(total / found.tokens, rel=1e-7)
    assert evaluate(theirs, rows, micro_batch_size=3).loss == pytest.approx(found.loss, rel=1e-6)
    across = evaluate(ours, list(rows)[2:] + list(rows)[:1], micro_batch_size=1)
    assert across.loss != pytest.approx(found.loss, rel=1e-3)  # sabotage is seen
