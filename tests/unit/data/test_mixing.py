from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_llama.cli.train import _is_finished
from ds_llama.config import load_run
from ds_llama.config.run import DataConfig
from ds_llama.data import open_corpora, open_data
from ds_llama.data.corpora import packed_lines
from ds_llama.data.mixing import MixtureSampler, integer_proportions
from ds_llama.data.sampler import Sampler, check_enough
from ds_llama.data.shards import ShardWriter
from ds_llama.errors import ConfigError, ConfigErrors, DataError
from tests.unit.data.conftest import write_shard


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        ([0.7, 0.3], [7, 3]),
        ([1, 1, 1], [1, 1, 1]),
        ([50, 25], [2, 1]),
        ([0.1, 0.2, 0.7], [1, 2, 7]),
        ([1e-3, 1], [1, 1000]),
        ([5], [1]),
    ],
)
def test_weights_are_read_as_written(weights: list[float], parts: list[int]) -> None:
    assert integer_proportions(weights) == parts


def test_weights_without_a_short_period_are_rounded_to_a_millionth() -> None:
    parts = integer_proportions([1 / 3, 0.1234567891])
    share = (1 / 3) / (1 / 3 + 0.1234567891)
    assert abs(parts[0] / sum(parts) - share) < 1e-6
    assert sum(parts) <= (1 << 20) + 2


@settings(max_examples=60)
@given(parts=st.lists(st.integers(1, 60), min_size=1, max_size=6), at=st.integers(0, 10**9))
def test_proportions_are_exact_over_any_period(parts: list[int], at: int) -> None:
    sampler = MixtureSampler([10] * len(parts), parts, seed=0)
    period = sum(sampler.parts)
    drawn = Counter(sampler.corpus_and_position(k)[0] for k in range(at, at + period))
    assert [drawn[i] for i in range(len(parts))] == sampler.parts


@settings(max_examples=60)
@given(parts=st.lists(st.integers(1, 40), min_size=2, max_size=5), prefix=st.integers(0, 400))
def test_a_prefix_is_as_close_as_the_docstring_says(parts: list[int], prefix: int) -> None:
    sampler = MixtureSampler([10] * len(parts), parts, seed=0)
    drawn = Counter(sampler.corpus_and_position(k)[0] for k in range(prefix))
    for corpus, part in enumerate(sampler.parts):
        share = part / sum(sampler.parts)
        assert abs(drawn[corpus] - share * prefix) <= 0.5 + share * len(parts) / 2 + 1e-9


def test_each_corpus_keeps_the_order_of_its_own_sampler() -> None:
    sampler = MixtureSampler([5, 9], [1, 2], seed=3)
    drawn: list[list[int]] = [[], []]
    for k in range(60):
        corpus, position = sampler.corpus_and_position(k)
        assert position == len(drawn[corpus])
        drawn[corpus].append(sampler.index(k) - sampler.starts[corpus])
    for corpus, length in enumerate((5, 9)):
        own = sampler.samplers[corpus]
        assert isinstance(own, Sampler)
        assert drawn[corpus] == [own.index(k) for k in range(len(drawn[corpus]))]
        first_epoch = drawn[corpus][:length]
        assert sorted(first_epoch) == list(range(length))


def test_corpora_of_equal_length_are_not_walked_in_step() -> None:
    sampler = MixtureSampler([50, 50], [1, 1], seed=3)
    first, second = ([s.index(k) for k in range(50)] for s in sampler.samplers)
    assert first != second


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_a_weight_that_is_not_positive_is_refused(weight: float) -> None:
    with pytest.raises(ConfigError) as caught:
        integer_proportions([1, weight])
    assert caught.value.what == f"a corpus has the weight {weight}"
    assert "above 0" in caught.value.remedy


def test_open_data_takes_a_prefix_or_a_weighted_list(tmp_path: Path) -> None:
    write_shard(tmp_path / "a", 31)
    write_shard(tmp_path / "b", 61)
    single, order = open_data(str(tmp_path / "a"), 4, seed=0)
    assert len(single) == order.length == 10
    paths = [str(tmp_path / "a"), str(tmp_path / "b")]
    mixture, order = open_data(
        [{"path": paths[0], "weight": 3}, SimpleNamespace(path=paths[1], weight=1)], 4, seed=0
    )
    assert len(mixture) == order.length == 30
    drawn = [order.index(k) for k in range(40)]
    assert sum(index < 10 for index in drawn) == 30
    assert mixture[10].input_ids.tolist() == mixture[0].input_ids.tolist() == [0, 1, 2, 3]
    with pytest.raises(IndexError, match="row 30 of 30"):
        mixture[30]
    assert paths[0] in repr(mixture)
    assert paths[1] in repr(mixture)


def test_corpora_are_packed_as_the_run_says(tmp_path: Path) -> None:
    for name, sizes in (("a", [9, 5, 4]), ("b", [2, 3, 6])):
        with ShardWriter(tmp_path / name, vocab_size=100) as writer:
            for size in sizes:
                writer.add(np.arange(size))
    paths = [{"path": str(tmp_path / name)} for name in ("a", "b")]

    def rows(**words: str) -> list[tuple[int, ...]]:
        data = DataConfig(train=paths, sequence_length=9, **words)
        dataset, order = open_corpora(data, data.train, seed=0)
        assert order.length == len(dataset)
        assert dataset.block_causal is data.block_causal
        return [dataset[i].lengths for i in range(len(dataset))]

    assert rows() == [(9,), (9,), (9,)]
    assert rows(attention_mask="block_causal") == [(9,), (1, 5, 3), (2, 3, 4)]
    assert rows(packing="best_fit") == [(9,), (5, 4), (3, 6), (2,)]
    assert rows(packing="none") == [(9,), (5,), (4,), (2,), (3,), (6,)]
    data = DataConfig(train=paths, sequence_length=9, packing="best_fit")
    first, second = packed_lines(open_corpora(data, data.train, seed=0)[0])
    assert first == f"{tmp_path / 'a'}: 3 documents, 18 tokens in 2 rows of 9: 0.00% empty"
    assert second == f"{tmp_path / 'b'}: 3 documents, 11 tokens in 2 rows of 9: 38.89% empty"
    windows = DataConfig(train=str(tmp_path / "a"), sequence_length=9)
    assert packed_lines(open_corpora(windows, windows.train, seed=0)[0]) == []
    data = DataConfig(train=paths, sequence_length=5, packing="none", truncation="drop")
    dataset, _ = open_corpora(data, data.train, seed=0)
    assert [dataset[i].lengths for i in range(len(dataset))] == [(5,), (4,), (2,), (3,)]


def uncapped(sampler: MixtureSampler, caps: list[int | None], count: int) -> list[tuple[int, int]]:
    """The draws of a mixture without caps, those beyond them left out: at most `count`."""
    endless = MixtureSampler([s.length for s in sampler.samplers], sampler.parts, seed=0)
    drawn: list[tuple[int, int]] = []
    index = 0
    living = [cap is None for cap in caps]
    while len(drawn) < count and (any(living) or len(drawn) < sum(c or 0 for c in caps)):
        corpus, position = endless.corpus_and_position(index)
        cap = caps[corpus]
        if cap is None or position < cap:
            drawn.append((corpus, position))
        index += 1
    return drawn


@settings(max_examples=100, deadline=None)
@given(
    parts=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    epochs=st.lists(st.none() | st.sampled_from([0.25, 1, 1.5, 3, 8]), min_size=5, max_size=5),
    start=st.integers(0, 300),
)
def test_a_corpus_at_its_cap_gives_way_and_moves_no_other(
    parts: list[int], epochs: list[float | None], start: int
) -> None:
    """From any sample on: what is left of the endless mixture without the draws beyond the caps."""
    epochs = epochs[: len(parts)]
    sampler = MixtureSampler([8] * len(parts), parts, seed=0, max_epochs=epochs)
    caps = [None if most is None else int(8 * most) for most in epochs]
    expected = uncapped(sampler, caps, 350)
    assert sampler.end == (None if None in caps else sum(cap for cap in caps if cap is not None))
    found = range(start, min(start + 50, len(expected)))
    assert [sampler.corpus_and_position(k) for k in found] == [expected[k] for k in found]
    if sampler.end is not None:
        with pytest.raises(IndexError, match=f"sample {sampler.end} of {sampler.end}"):
            sampler.index(sampler.end)


def test_the_others_keep_their_proportions_exactly() -> None:
    sampler = MixtureSampler([100, 100, 100], [1, 3, 2], seed=0, max_epochs=[0.5, None, None])
    drawn = [sampler.corpus_and_position(k)[0] for k in range(3000)]
    last = max(k for k, corpus in enumerate(drawn) if corpus == 0)
    assert Counter(drawn[: last + 1])[0] == 50
    for start in (last + 1, last + 2, last + 444):
        assert Counter(drawn[start : start + 500]) == {1: 300, 2: 200}


def test_temperature_makes_shares_of_sizes() -> None:
    """p_i in proportion to n_i^(1/T): T = 1 are the sizes themselves, a high one is even."""
    sizes = [900, 100]

    def share(temperature: float | None, weights: tuple[float, ...] = (1, 1)) -> float:
        parts = MixtureSampler(sizes, weights, seed=0, temperature=temperature).parts
        return parts[0] / sum(parts)

    assert share(1) == 0.9
    assert share(2) == 0.75
    assert share(5) == pytest.approx(900**0.2 / (900**0.2 + 100**0.2), abs=1e-6)
    assert share(None) == 0.5
    assert share(1e9) == pytest.approx(0.5, abs=1e-6)
    assert share(1, (1, 9)) == 0.5  # a weight is a factor beside it: the small corpus nine times
    sampler = MixtureSampler(sizes, (1, 1), seed=0, temperature=1)
    drawn = [sampler.index(k) for k in range(1000)]
    assert sorted(drawn) == list(range(1000))


def test_a_cap_is_never_less_than_one_sample() -> None:
    assert MixtureSampler([3, 3], [1, 1], seed=0, max_epochs=[0.1, 0.7]).end == 1 + 2


def test_more_samples_than_the_caps_allow_are_an_error_with_both_numbers() -> None:
    sampler = MixtureSampler([10, 10], [1, 1], seed=0, max_epochs=[1, 2])
    check_enough(sampler, 30)
    check_enough(Sampler(10, seed=0), 10**9)
    check_enough(MixtureSampler([10, 10], [1, 1], seed=0, max_epochs=[1, None]), 10**9)
    with pytest.raises(DataError) as caught:
        check_enough(sampler, 31)
    assert caught.value.what == (
        "the run takes 31 samples, and the corpora give 30 within their max_epochs"
    )
    assert caught.value.where == "data.train"
    assert "raise max_epochs" in caught.value.remedy


def test_a_run_says_temperature_and_caps(tmp_path: Path) -> None:
    """From its JSON to the order; more than there is is refused before ranks are started."""
    write_shard(tmp_path / "a", 76)
    write_shard(tmp_path / "b", 301)
    corpora = [{"path": str(tmp_path / "a"), "max_epochs": 1.5}, str(tmp_path / "b")]
    tree = {
        "model": {"preset": "quickstart"},
        "data": {"train": corpora, "sequence_length": 4, "temperature": 2},
        "train": {"steps": 16, "global_batch_size": 8},
        "deepspeed": {"zero_optimization": {"stage": 1}},
        "output": str(tmp_path / "run"),
    }
    run = load_run(tree)
    _, order = open_corpora(run.data, run.data.train, seed=0)
    assert isinstance(order, MixtureSampler)
    assert (order.parts, order.length, order.end) == ([1, 2], 125, None)
    drawn = Counter(order.corpus_and_position(k)[0] for k in range(1000))
    assert drawn == {0: 37, 1: 963}
    assert not _is_finished(run, 2, "auto")
    tree["data"]["train"] = [{"path": str(tmp_path / name), "max_epochs": 1} for name in "ab"]
    with pytest.raises(DataError, match="the run takes 128 samples, and the corpora give 125"):
        _is_finished(load_run(tree), 2, "auto")


@pytest.mark.parametrize("key", ["data.temperature", "data.train.0.max_epochs"])
def test_neither_is_zero(key: str) -> None:
    tree = {
        "model": {"preset": "quickstart"},
        "data": {"train": [{"path": "a"}]},
        "deepspeed": {"zero_optimization": {"stage": 1}},
    }
    with pytest.raises(ConfigErrors) as caught:
        load_run(tree, f"{key}=0")
    (error,) = caught.value.errors
    assert key in error.where
    assert "greater than 0" in error.what
