"""Rows of several documents, under ZeRO: the gradient of the documents, each run alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.utils import safe_get_full_grad
from transformers import LlamaConfig as HFConfig
from transformers import LlamaForCausalLM

from ds_llama.data.collate import Batch, collate
from ds_llama.data.sample import IGNORED, Sample
from ds_llama.errors import ModelError
from ds_llama.evals.perplexity import evaluate
from ds_llama.model import inputs
from ds_llama.trainer.build import construct
from ds_llama.zero import world
from ds_llama.zero.register import register
from ds_llama.zero.step import take_step
from tests.distributed.reference import Reference
from tests.distributed.runs import MODEL, VOCAB, make_run

ROWS = [(5, 20, 7), (9, 9, 1), (32,), (3, 4, 21)]


class Rows:
    """Four rows, of which one is shorter; as a dataset."""

    block_causal = True

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, row: int) -> Sample:
        draw = torch.Generator().manual_seed(row)
        ids = torch.randint(0, VOCAB, (sum(ROWS[row]),), generator=draw).numpy()
        labels = ids.copy()
        labels[torch.tensor([0, *ROWS[row][:-1]]).cumsum(0).numpy()] = IGNORED
        return Sample(ids, labels, ROWS[row])


def alone() -> list[Batch]:
    """Every document as a batch of its own."""
    batches = []
    for ids, labels, lengths in (Rows()[row] for row in range(len(ROWS))):
        ends = torch.tensor(lengths).cumsum(0).tolist()
        for end, length in zip(ends, lengths, strict=True):
            part = slice(end - length, end)
            batches.append(collate([Sample(ids[part], labels[part], (length,))]))
    return batches


def window(micro_batch_size: int) -> list[Batch]:
    """This rank's micro-batches."""
    per_rank = len(ROWS) // world.world_size()
    first = world.rank() * per_rank
    starts = range(first, first + per_rank, micro_batch_size)
    return [
        collate([Rows()[row] for row in range(start, start + micro_batch_size)], True)
        for start in starts
    ]


def gradients_at_update(engine: Any) -> dict[str, torch.Tensor]:
    """Filled with every parameter's whole gradient before the engine's next update."""
    seen: dict[str, torch.Tensor] = {}
    original = engine.step

    def step() -> None:
        if engine.is_gradient_accumulation_boundary():
            for name, parameter in engine.module.named_parameters():
                seen[name] = safe_get_full_grad(parameter).clone()
        original()

    engine.step = step
    return seen


def same_gradient(folder: Path) -> None:
    """Recomputed and summed over micro-batches, at the stage that gathers every weight."""
    size = world.world_size()
    run = make_run(
        folder,
        stage=3,
        micro_batch_size=1,
        accumulation=len(ROWS) // size,
        world=size,
        deepspeed={"activation_checkpointing": {}},
    )
    reference = Reference(construct(run, how="plain"))
    loss, expected = reference.gradients(alone(), world=1)
    engine = register(construct(run), run)
    before = evaluate(engine, Rows(), micro_batch_size=3)
    assert before.loss == pytest.approx(loss, rel=1e-6)
    assert before.tokens == sum(length - 1 for row in ROWS for length in row)
    seen = gradients_at_update(engine)
    result = take_step(engine, window(1))
    assert result.loss == pytest.approx(loss, rel=1e-6)
    assert result.tokens == before.tokens
    gaps = {n: float((seen[n] - g).abs().max() / g.abs().max()) for n, g in expected.items()}
    assert max(gaps.values()) < 1e-5, gaps


def hugging_faces_too(folder: Path) -> None:
    """Told to make no cache; a model that cannot tell documents apart is refused."""
    size = world.world_size()
    run = make_run(folder, stage=2, micro_batch_size=len(ROWS) // size, world=size)
    ours = construct(run, how="plain")
    theirs = LlamaForCausalLM(HFConfig(**MODEL))
    theirs.load_state_dict(ours.state_dict())
    loss, _ = Reference(ours).gradients(alone(), world=1)
    engine = register(theirs, run)
    batches = window(len(ROWS) // size)
    assert evaluate(engine, Rows(), micro_batch_size=2).loss == pytest.approx(loss, rel=1e-5)
    assert take_step(engine, batches).loss == pytest.approx(loss, rel=1e-5)
    with pytest.raises(ModelError) as caught:
        inputs.inputs_of(batches[0], world.device(), None)
    assert "this model is not known to" in caught.value.what
    assert "apart=" in caught.value.remedy


def across_documents(folder: Path) -> None:
    """Twin: without the borders it is another loss."""
    size = world.world_size()
    run = make_run(folder, stage=3, micro_batch_size=len(ROWS) // size, world=size)
    loss, _ = Reference(construct(run, how="plain")).gradients(alone(), world=1)
    engine = register(construct(run), run)
    batches = window(len(ROWS) // size)
    for batch in batches:
        del batch["position_ids"], batch["document_lengths"]
    assert abs(take_step(engine, batches).loss - loss) > 1e-3


CELLS = {
    "same-gradient": ((2,), same_gradient),
    "hugging-faces-too": ((2,), hugging_faces_too),
    "twin-across-documents": ((2,), across_documents),
}
