"""layout.json: small at any world size, and the same as a list of every piece of every rank."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ds_llama import preset
from ds_llama.checkpoint import layout
from ds_llama.errors import CheckpointError
from ds_llama.weights.skeleton import specs_of

Piece = tuple[int, int, int, int, int, int]  # parameter, rank, partition, offset, start, count


Rank = tuple[list[int], list[tuple[int, int, int, int, int]]]


def sliced(numels: list[int], world: int, rank: int) -> Rank:
    """What a rank has at stage 3: its slice of every parameter, one after another."""
    pieces, offset = [], 0
    for index, numel in enumerate(numels):
        size = -(-numel // world)
        count = max(0, min(size, numel - rank * size))
        pieces.append((index, 0, offset, rank * size, count))
        offset += size
    return [offset], pieces


def flat(numels: list[int], world: int, rank: int) -> Rank:
    """What a rank has at stages 1 and 2: its part of one flat group."""
    size, pieces, begin = -(-sum(numels) // world), [], 0
    for index, numel in enumerate(numels):
        first, last = max(begin, rank * size), min(begin + numel, (rank + 1) * size)
        if first < last:
            pieces.append((index, 0, first - rank * size, first - begin, last - first))
        begin += numel
    return [size], pieces


def every(ranks: list[Rank]) -> Iterator[Piece]:
    for rank, (_, pieces) in enumerate(ranks):
        for index, group, offset, start, count in pieces:
            if count:
                yield index, rank, group, offset, start, count


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=6),
    st.integers(1, 9),
    st.sampled_from([sliced, flat]),
    st.integers(0, 60),
    st.integers(0, 60),
)
def test_nothing_is_lost(
    numels: list[int], world: int, divide: Any, start: int, length: int
) -> None:
    ranks = [divide(numels, world, rank) for rank in range(world)]
    parameters = [[f"p{index}", [numel], True] for index, numel in enumerate(numels)]
    texts = [layout.written(rank, *held) for rank, held in enumerate(ranks)]
    found = layout.Layout(json.loads(layout.encode(layout.fold(parameters, texts))))
    assert [found.sizes(rank) for rank in range(world + 1)] == [own for own, _ in ranks] + [[]]
    assert found.ranks == world
    whole = sorted(
        (index, held.rank, held.partition, held.offset, held.start, held.count)
        for index in range(len(numels))
        for held in found.holders(f"p{index}")
    )
    assert whole == sorted(every(ranks))
    for index in range(len(numels)):
        wanted = {
            (rank, begin)
            for which, rank, _, _, begin, count in whole
            if which == index and begin < start + length and begin + count > start
        }
        holders = {(held.rank, held.start) for held in found.holders(f"p{index}", start, length)}
        assert holders >= wanted
        assert len(holders) <= len(wanted) + (length == 0)


def test_a_405b_at_world_1024() -> None:
    """A list of every rank's pieces took some 60 MB at stage 3."""
    specs = specs_of(preset("llama-3.1-405b"), torch.float32)
    parameters = [[name, list(spec.shape), True] for name, spec in specs.items()]
    numels, world = [spec.numel for spec in specs.values()], 1024
    for divide, seen in ((sliced, [0, 1, 1023]), (flat, range(world))):
        texts = [layout.written(rank, *divide(numels, world, rank)) for rank in seen]
        if divide is sliced:
            assert len({*texts}) == 1
            texts = texts[:1] * world  # 1024 divides everything
        content = layout.encode(layout.fold(parameters, texts))
        assert len(content) < 200_000, len(content)


class Engine:
    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module


def _refused(saved: torch.nn.Module, now: torch.nn.Module) -> CheckpointError:
    content = layout.fold(layout.parameters(Engine(saved)), [])
    with pytest.raises(CheckpointError) as caught:
        layout.require_same_parameters(layout.Layout(content), Engine(now), Path("step"))
    assert caught.value.where == "step/layout.json"
    return caught.value


def test_other_parameters_are_named() -> None:
    first, wide, bare = (torch.nn.Linear(2, 2), torch.nn.Linear(3, 2), torch.nn.Linear(2, 2, False))
    error = _refused(first, wide)
    assert error.what == "the checkpoint's weight is [2, 2], this run's [2, 3]"
    assert "another output folder" in error.remedy
    error = _refused(first, bare)
    assert error.what == "the checkpoint has bias, which this run's model has not"
    two = torch.nn.Sequential(bare, first)
    error = _refused(two, first)
    assert error.what == "the checkpoint has 0.weight and 2 more, which this run's model has not"
    error = _refused(bare, first)
    assert error.what == "this run's model has bias, which the checkpoint has not"


def test_other_frozen_parameters_are_named() -> None:
    whole, frozen = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    frozen.weight.requires_grad_(False)
    error = _refused(whole, frozen)
    assert error.what == "this run freezes weight, which the checkpoint's trained"
    assert "requires_grad" in error.remedy
    assert "export the checkpoint" in error.remedy
    error = _refused(frozen, whole)
    assert error.what == "this run trains weight, which the checkpoint's froze"


def test_a_layout_that_cannot_be_read(tmp_path: Path) -> None:
    for content in (None, "{", "[]", "{}", '{"parameters": [], "partitions": [], "pieces": [[1]]}'):
        if content is not None:
            (tmp_path / layout.NAME).write_text(content)
        with pytest.raises(CheckpointError, match=r"layout\.json cannot be read") as caught:
            layout.read(tmp_path)
        assert "checkpoint list" in caught.value.remedy
