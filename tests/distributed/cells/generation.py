"""Ranks that ask one engine for texts, or divide rows, and whose passes need all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import ds_llama as dl
from ds_llama.data.rows import Row
from ds_llama.errors import CallError, ModelError, RunError
from ds_llama.evals import asking, scoring
from ds_llama.evals import generate as generation
from ds_llama.evals.generate import generate
from ds_llama.evals.load import Loaded
from ds_llama.evals.sampling import Sampling
from ds_llama.evals.tasks import Scores, by_generation, by_likelihood
from ds_llama.trainer.build import construct
from ds_llama.zero import world
from ds_llama.zero.engine import destroy
from ds_llama.zero.register import register
from tests.distributed.runs import MODEL, make_run

# By rank: prompts of other lengths, as many as come in two batches and in one, other limits.
PROMPTS = ([[1, 17, 42, 9], [5], [7, 7, 3]], [[1, 99]])
LIMITS = (4, 2)
SAMPLINGS = (Sampling(), Sampling(1.0, top_k=20, seed=3, repetition_penalty=1.2))


@contextmanager
def passes(model: torch.nn.Module) -> Iterator[list[int]]:
    """One for each forward pass."""
    found: list[int] = []
    hook = model.register_forward_hook(lambda *_: found.append(1))
    yield found
    hook.remove()


def everyones(value: int) -> list[int]:
    gathered = [0] * world.world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def a_plain_one(folder: Path) -> dl.Llama:
    """The same weights, whole, on every rank."""
    return dl.Llama(dl.LlamaConfig(**MODEL), seed=make_run(folder).train.seed).eval()


def as_one_process_does(folder: Path) -> None:
    """At stage 3 every rank writes what it would alone, in as many passes as the others."""
    run = make_run(folder, stage=3, world=world.world_size())
    engine, plain = register(construct(run), run), a_plain_one(folder)
    prompts, limit = PROMPTS[world.rank()], LIMITS[world.rank()]
    for sampling in SAMPLINGS:
        settings = {"max_new_tokens": limit, "sampling": sampling, "batch_size": 2}
        with passes(engine.module) as made:
            found = generate(engine, prompts, **settings)
        assert found == generate(plain, prompts, **settings)
        assert everyones(len(made)) == [8, 8]
    assert engine.training
    nothing = PROMPTS[0] if world.rank() == 0 else []
    assert generate(engine, nothing, max_new_tokens=2) == generate(plain, nothing, max_new_tokens=2)
    mistaken(engine)
    destroy(engine)


def mistaken(engine: torch.nn.Module) -> None:
    """A mistake on one rank, before and amid the passes, is an error on both."""

    def broken(row: int, token: int) -> bool:
        raise BrokenPipeError

    for prompts, listener, error in (([[]], None, CallError), ([[1]], broken, BrokenPipeError)):
        if world.rank() == 1:
            with pytest.raises(error):
                generate(engine, prompts, max_new_tokens=3, on_token=listener)
        else:
            with pytest.raises(RunError, match="another rank could not generate"):
                generate(engine, [[1, 2]], max_new_tokens=3)


def alone_they_would_not_meet(folder: Path) -> None:
    """The twin: over whole weights nothing keeps step, and ranks differ in how many passes."""
    plain = a_plain_one(folder)
    prompts, limit = PROMPTS[world.rank()], LIMITS[world.rank()]
    with passes(plain) as made:
        alone = generate(plain, prompts, max_new_tokens=limit, batch_size=2)
    assert everyones(len(made)) == [8, 2]
    with pytest.MonkeyPatch.context() as patch, passes(plain) as made:
        patch.setattr(generation, "is_partitioned", lambda model: True)
        assert generate(plain, prompts, max_new_tokens=limit, batch_size=2) == alone
    assert everyones(len(made)) == [8, 8]


class Bytes:
    """A tokenizer of UTF-8, for a vocabulary of 128."""

    vocab_size, bos_id, eos_id = 128, 1, None

    def encode(self, text: str, bos: bool = False) -> list[int]:
        return [self.bos_id] * bos + list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode().removeprefix("\x01")


# 4 rows of 3 choices are 12 sequences, 3 batches of 5: one rank has more of both than the other.
ROWS = [Row("rows", n, "what " * n + "is it", ("a", "bb c", "d" * n), ("a",)) for n in range(1, 5)]
FREE = [Row("rows", row.line, row.prompt, (), ("a",)) for row in ROWS]


def answered(model: torch.nn.Module) -> list[Scores]:
    loaded = Loaded(model, getattr(model, "module", model).config, None)
    return [
        by_likelihood(loaded, Bytes(), ROWS, batch_size=5),
        by_generation(loaded, Bytes(), FREE[:3], batch_size=1, max_new_tokens=4),
    ]


def as_one_process_answers(folder: Path) -> None:
    """At stage 3 ranks divide the rows, and each has the answers of all, bit for bit."""
    run = make_run(folder, stage=3, world=world.world_size())
    engine, plain = register(construct(run), run), a_plain_one(folder)
    with passes(plain) as made, pytest.MonkeyPatch.context() as patch:
        patch.setattr(asking, "rank_and_world", lambda: (0, 1))
        patch.setattr(scoring, "rank_and_world", lambda: (0, 1))
        expected = answered(plain)
    assert everyones(len(made)) == [15, 15]  # 3 batches, and 3 prompts of 4 tokens
    with passes(engine.module) as made:
        assert answered(engine) == expected
    assert everyones(len(made)) == [10, 10]  # of 2 and 8
    assert engine.training
    with passes(plain) as made:  # the twin: over whole weights nothing keeps step
        assert answered(plain) == expected
    assert everyones(len(made)) == [10, 5]
    one_cannot_answer(plain)
    destroy(engine)


def one_cannot_answer(plain: dl.Llama) -> None:
    """Rank 1's weights are not finite, which it sees amid its rows; the other does not wait."""
    if world.rank() == 1:
        with torch.no_grad():
            plain.model.norm.weight.fill_(torch.nan)
    error = ModelError if world.rank() == 1 else RunError
    with pytest.raises(error, match="finite" if world.rank() == 1 else "another rank could not"):
        scoring.written_answers(plain, Bytes(), FREE, batch_size=1, max_new_tokens=2, eos=())


CELLS = {
    "as-one-process": ((2,), as_one_process_does),
    "rows": ((2,), as_one_process_answers),
    "alone": ((2,), alone_they_would_not_meet),
}
