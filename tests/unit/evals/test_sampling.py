"""Filters against transformers' logits processors, and draws against the probabilities."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ds_llama.errors import CallError
from ds_llama.evals.sampling import Sampling

VOCAB = 41


def _by_transformers(sampling: Sampling, logits: Tensor, ids: Tensor) -> Tensor:
    """The processors and their order in `GenerationMixin._get_logits_processor`."""
    processors: list[Any] = []
    if sampling.repetition_penalty != 1:
        processors.append(
            transformers.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)
        )
    if sampling.temperature > 0:
        processors.append(transformers.TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k is not None:
        processors.append(transformers.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p is not None and sampling.top_p < 1:
        processors.append(transformers.TopPLogitsWarper(sampling.top_p))
    return transformers.LogitsProcessorList(processors)(ids, logits.clone())


SAMPLINGS = st.builds(
    Sampling,
    temperature=st.floats(0.05, 5.0),
    top_k=st.none() | st.integers(1, 2 * VOCAB),
    top_p=st.none() | st.floats(1e-6, 1.0),
    repetition_penalty=st.just(1.0) | st.floats(0.2, 5.0),
) | st.builds(Sampling, repetition_penalty=st.floats(0.2, 5.0))


@given(SAMPLINGS, st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 30))
def test_filters_are_transformers(sampling: Sampling, seed: int, rows: int, tokens: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, VOCAB, generator=generator) * 3
    logits = logits.round(decimals=seed % 3)  # some of them equal
    ids = torch.randint(VOCAB, (rows, tokens), generator=generator)
    seen = torch.zeros(rows, VOCAB, dtype=torch.bool).scatter_(1, ids, True)
    expected = _by_transformers(sampling, logits, ids)
    torch.testing.assert_close(sampling.filter(logits, seen), expected, rtol=0, atol=0)


def test_sabotaged_filters_are_not_transformers() -> None:
    logits = torch.linspace(-2, 2, VOCAB)[None]
    ids = torch.tensor([[40, 0]])
    seen = torch.zeros(1, VOCAB, dtype=torch.bool).scatter_(1, ids, True)
    right = {"temperature": 0.7, "top_k": 9, "top_p": 0.8, "repetition_penalty": 1.2}
    expected = _by_transformers(Sampling(**right), logits, ids)
    assert torch.equal(Sampling(**right).filter(logits, seen), expected)
    for wrong in ({"temperature": 0.71}, {"top_k": 3}, {"top_p": 0.5}, {"repetition_penalty": 1.1}):
        assert not torch.equal(Sampling(**(right | wrong)).filter(logits, seen), expected), wrong


def _draws(sampling: Sampling, logits: list[float], count: int) -> Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in sampling.seeds(count)]
    drawn = sampling.choose(torch.tensor([logits]).repeat(count, 1), generators)
    return torch.bincount(drawn, minlength=len(logits)) / count


def test_draws_follow_the_probabilities() -> None:
    sampling = Sampling(1.0, top_k=2)
    shares = _draws(sampling, [-5.0, 2.0, 0.9, 1.0, -5.0], 20_000)
    expected = torch.tensor([2.0, 1.0]).softmax(0)
    torch.testing.assert_close(shares[[1, 3]], expected, atol=0.015, rtol=0)
    assert shares[[0, 2, 4]].tolist() == [0, 0, 0]


def test_one_sequence_draws_by_the_probabilities_too() -> None:
    """One generator again and again, as a long text does."""
    generator = torch.Generator().manual_seed(0)
    logits, sampling = torch.tensor([[0.0, 1.0, 2.0]]), Sampling(1.0)
    drawn = torch.cat([sampling.choose(logits, [generator]) for _ in range(1500)])
    shares = torch.bincount(drawn, minlength=3) / 1500
    torch.testing.assert_close(shares, logits[0].softmax(0), atol=0.05, rtol=0)


def test_the_ends_of_what_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest and the largest number that torch draws never take what has no probability."""
    logits = torch.tensor([[-torch.inf, 1.0, 1.0, -torch.inf]])
    found = []
    for draw in (0.0, 1 - 2**-53):
        monkeypatch.setattr(
            torch, "rand", lambda *a, draw=draw, **k: torch.tensor([draw], dtype=torch.float64)
        )
        found.append(int(Sampling(1.0).choose(logits, [torch.Generator()])))
    assert sorted(found) == [1, 2]


def test_seeds_of_the_first_sequences_do_not_depend_on_the_others() -> None:
    assert Sampling(seed=7).seeds(3) == Sampling(seed=7).seeds(50)[:3]
    assert len(set(Sampling(seed=7).seeds(50) + Sampling(seed=8).seeds(50))) == 100


@pytest.mark.parametrize(
    ("values", "what", "where"),
    [
        ({"temperature": -0.5}, "temperature is -0.5", "--temperature"),
        ({"temperature": float("nan")}, "temperature is nan", "--temperature"),
        ({"top_k": 0}, "top-k is 0", "--top-k"),
        ({"top_p": 0.0}, "top-p is 0.0", "--top-p"),
        ({"top_p": 1.5}, "top-p is 1.5", "--top-p"),
        ({"seed": -1}, "seed is -1", "--seed"),
        ({"seed": 2**63}, f"seed is {2**63}", "--seed"),
        ({"repetition_penalty": 0.0}, "repetition-penalty is 0.0", "--repetition-penalty"),
        ({"top_k": 5}, "top-k does nothing at temperature 0", "--top-k"),
        ({"top_p": 0.5}, "top-p does nothing at temperature 0", "--top-p"),
    ],
    ids=str,
)
def test_values_out_of_range(values: dict[str, Any], what: str, where: str) -> None:
    with pytest.raises(CallError) as caught:
        Sampling(**values)
    assert caught.value.what.startswith(what)
    assert caught.value.where == where
    assert caught.value.remedy.startswith("give ")
