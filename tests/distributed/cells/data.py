"""What ranks do with data that does not divide evenly, cannot be read, or is of unequal work."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.utils import safe_get_full_grad

from ds_llama.config.run import Run
from ds_llama.data import open_corpora
from ds_llama.data.collate import Batch
from ds_llama.data.loader import Loader
from ds_llama.data.packing import PackedDataset
from ds_llama.data.sample import Sample
from ds_llama.data.shards import ShardWriter
from ds_llama.errors import DataError
from ds_llama.trainer.build import construct
from ds_llama.trainer.train import train
from ds_llama.zero import world
from ds_llama.zero.register import register
from ds_llama.zero.step import take_step
from tests.distributed.cells.foreign import _hugging_face
from tests.distributed.runs import TOKENS, VOCAB, global_batch, make_run, split

SAMPLES = 13
BATCH, MICRO = 4, 1


def shard(folder: Path, lengths: list[int]) -> str:
    """Random documents of these lengths, written by rank 0."""
    prefix = folder / "shard"
    if world.rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(11)
        with ShardWriter(prefix, vocab_size=VOCAB) as writer:
            for length in lengths:
                writer.add(torch.randint(0, VOCAB, (length,), generator=generator).numpy())
    torch.distributed.barrier()
    return str(prefix)


def run_of(folder: Path, lengths: list[int], **sections: Any) -> Run:
    """A run of the trainer over documents; `data` is added to its section."""
    prefix = shard(folder.parent, lengths)
    data = {"train": prefix, "sequence_length": TOKENS} | sections.pop("data", {})
    sizes = {"global_batch_size": BATCH, "micro_batch_size": MICRO}
    defaults = {
        "data": data,
        "train": {"epochs": 1.0, **sizes},
        "checkpoint": {"export": False},
        "tracking": {"console": False},
    }
    return make_run(folder, **(defaults | sections))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    torch.distributed.barrier()
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def an_epoch(folder: Path, *, stage: int) -> None:
    """13 samples in global batches of 4: a fourth step over one, and every token counts once.

    So does every token of as many windows held out, in passes of as many batches on each rank. The
    losses are those of one rank.
    """
    shared = folder.parents[1] / "saved" / f"data-{stage}"
    own = shared / str(world.world_size())
    lengths, held_out = [1 + SAMPLES * (TOKENS - 1)], {"validation": str(own / "shard")}
    run = run_of(own / "run", lengths, stage=stage, data=held_out)
    state = train(register(construct(run), run), run)
    rows = rows_of(own / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    tokens = [BATCH * (TOKENS - 1) * number for number in (1, 2, 3)]
    assert [row["tokens_seen"] for row in rows] == [*tokens, SAMPLES * (TOKENS - 1)]
    assert (state.samples_seen, state.total_steps, state.finished) == (SAMPLES, 4, True)
    if world.world_size() == 2:
        alone = rows_of(shared / "1" / "run")
        for key in ("loss", "grad_norm"):
            values = [row[key] for row in alone]
            assert [row[key] for row in rows] == pytest.approx(values, rel=1e-5), key
        last = "validation_loss"
        assert rows[-1][last] == pytest.approx(alone[-1][last], rel=1e-6)


def caps_end_a_run(folder: Path) -> None:
    """Two corpora of 13 within half an epoch and one: 6 and 13 samples, 5 steps, or an error."""
    prefix = shard(folder / "corpus", [1 + SAMPLES * (TOKENS - 1)])
    corpora = [{"path": prefix, "max_epochs": most} for most in (0.5, 1)]
    data = {"train": corpora, "temperature": 2.0}
    run = run_of(folder / "run", [2], data=data, train={"steps": 5, "global_batch_size": BATCH})
    words = _said_by_all(partial(train, register(construct(run), run), run))
    assert words.what == (
        "the run takes 20 samples, and the corpora give 19 within their max_epochs"
    )


def unreadable(folder: Path) -> None:
    """A row that one rank cannot read ends the run on all of them with the same error."""
    run = run_of(folder / "run", [1 + SAMPLES * (TOKENS - 1)], train={"steps": 9})
    engine = register(construct(run), run)
    whole, reads = PackedDataset.__getitem__, iter(range(100))

    def broken(dataset: PackedDataset, index: int) -> Sample:
        if world.rank() == 1 and next(reads) == 4:
            raise OSError(5, "Input/output error")
        return whole(dataset, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PackedDataset, "__getitem__", broken)
        error = _said_by_all(partial(train, engine, run))
    assert error.what == (
        "the data could not be read on rank 1: OSError: [Errno 5] Input/output error"
    )
    assert error.where == f"step 5 of {folder / 'run'}"
    assert "resume from a checkpoint" in error.remedy
    assert [row["step"] for row in rows_of(folder / "run")] == [1, 2, 3, 4]


def _said_by_all(action: Callable[[], Any]) -> DataError:
    with pytest.raises(DataError) as caught:
        action()
    words: list[Any] = [None] * world.world_size()
    torch.distributed.all_gather_object(words, str(caught.value))
    assert len(set(words)) == 1, words
    return caught.value


def a_rank_without_labels(folder: Path) -> None:
    """Also with a model whose loss is the mean over its valid tokens: NaN where there are none."""
    run = make_run(folder, world=2)
    weights = construct(run, how="plain").state_dict()
    batch = global_batch(0, 4)
    batch["labels"][2:] = -100
    found = []
    for words in (True, False):
        engine = register(_hugging_face(weights), run)
        if not words:
            traits = replace(engine.ds_llama.traits, sum_loss=None)
            engine.ds_llama = replace(engine.ds_llama, traits=traits)
        result = take_step(engine, split(batch, 2, world.rank(), 2))
        assert result is not None
        assert result.applied
        found.append((result.tokens, result.loss, result.grad_norm))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


LENGTHS = [3, 32, 9, 4, 17, 5, 2, 28, 8, 3, 6, 31, 4, 12, 2, 7]


def gradients(folder: Path, window: list[Batch], stage: int) -> dict[str, torch.Tensor]:
    """Of the whole global batch, averaged over its tokens, by name."""
    run = make_run(folder, stage=stage, micro_batch_size=2, accumulation=4, world=2)
    engine, seen = register(construct(run), run), {}
    step = engine.step

    def look() -> None:
        if engine.is_gradient_accumulation_boundary():
            named = engine.module.named_parameters()
            seen.update({name: safe_get_full_grad(p).clone() for name, p in named})
        step()

    engine.step = look
    take_step(engine, window)
    return seen


def balanced(folder: Path) -> None:
    """The gradient of a global batch is the same whoever takes what; not so without one document.

    And the metric of the run is that of `data.balance`.
    """
    sizes = {"global_batch_size": 16, "micro_batch_size": 2}
    run = run_of(folder / "run", LENGTHS, data={"packing": "none"}, train={"epochs": 1.0, **sizes})
    engine = register(construct(run), run)
    resolved = engine.ds_llama.resolved
    dataset, order = open_corpora(run.data, run.data.train, 0)
    here = {"rank": world.rank(), "device": world.device()}
    with (
        Loader.of_run(resolved, dataset, order, **here) as loader,
        Loader(dataset, order, **sizes, rank=world.rank(), world_size=2) as naive,
    ):
        windows, plain = next(loader), next(naive)
        assert 1 < loader.imbalance < 1.2
        assert naive.imbalance is None
        imbalance = loader.imbalance
    rows = [len(batch["labels"]) for batch in windows]
    assert rows != [2, 2, 2, 2]
    for stage in (2, 3):
        expected = gradients(folder / f"naive-{stage}", plain, stage)
        found = gradients(folder / f"balanced-{stage}", windows, stage)
        assert gap(found, expected) < 1e-5
    for batch in windows[:1]:
        batch["labels"][0] = -100
    assert (
        gap(gradients(folder / "sabotaged", windows, 2), gradients(folder / "n", plain, 2)) > 1e-3
    )
    train(engine, run)
    [row] = rows_of(folder / "run")
    assert row["imbalance"] == imbalance
    assert row["tokens_seen"] == sum(LENGTHS) - len(LENGTHS)


def gap(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    return max(float((found[n] - g).abs().max() / g.abs().max()) for n, g in expected.items())


CELLS: dict[str, tuple[tuple[int, ...], Callable[[Path], None]]] = {
    "epoch-3": ((1, 2), partial(an_epoch, stage=3)),
    "caps": ((2,), caps_end_a_run),
    "unreadable": ((2,), unreadable),
    "no-labels": ((2,), a_rank_without_labels),
    "balanced": ((2,), balanced),
}
