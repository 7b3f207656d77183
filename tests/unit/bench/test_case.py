"""Cases: what they expand to, and what is wrong with bad ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_llama.bench.case import Axes, matches, parse_case, read_case, select
from ds_llama.errors import CallError, ConfigError

CASES = sorted((Path(__file__).parents[3] / "benchmarks/cases").glob("*.json"))
AXES = {
    "stage": st.integers(0, 3),
    "offload": st.sampled_from(["none", "optimizer", "all", "nvme"]),
    "precision": st.sampled_from(["fp32", "bf16", "fp16"]),
    "recompute": st.booleans(),
    "sequence_length": st.integers(1, 4096),
}


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_shipped_cases_are_read(path: Path) -> None:
    case = read_case(path)
    assert case.description
    assert len({cell.key for cell in case.expanded}) == len(case.expanded)


@given(st.fixed_dictionaries({}, optional={k: st.lists(v, max_size=3) for k, v in AXES.items()}))
def test_every_combination_once(axes: dict[str, list[Any]]) -> None:
    axes = {name: values for name, values in axes.items() if values}
    expected = 1
    for values in axes.values():
        expected *= len(set(values))
    case = parse_case({"sweep": {"model": "tiny", **axes}}, "case")
    assert len(case.expanded) == expected
    for cell in case.expanded:
        assert all(getattr(cell, name) in values for name, values in axes.items())


def test_added_cells_are_laid_over_the_first() -> None:
    case = parse_case(
        {
            "sweep": {"model": "tiny", "stage": [1, 2], "precision": "fp32"},
            "cells": [{"stage": 3, "offload": ["none", "all"]}, {"stage": 2}],
            "reference": {"stage": 2},
        },
        "case",
    )
    assert [cell.strategy for cell in case.expanded] == ["zero1", "zero2", "zero3", "zero3+all"]
    assert {cell.precision for cell in case.expanded} == {"fp32"}
    assert [cell.stage for cell in case.expanded if matches(cell, case.reference)] == [2]


@pytest.mark.parametrize(
    ("patterns", "wanted"),
    [
        ([], [0, 1, 2, 3]),
        (["zero3 bf16 tiny 1 x 512 on 1"], [1]),  # which is a part of a peer's name
        (["zero*"], [0, 1]),
        (["*zero*"], [0, 1, 2, 3]),
        (["peer"], [2, 3]),
        (["zero2 bf16", "peer:way zero3*"], [0, 2, 3]),
        (["bf16*x 512"], [0, 1, 2, 3]),
    ],
)
def test_patterns_are_of_whole_names_or_of_parts(patterns: list[str], wanted: list[int]) -> None:
    sweep = {"model": "tiny", "program": ["ds_llama", "../peer.py:way"], "stage": [2, 3]}
    cells = parse_case({"sweep": sweep}, "case").expanded
    assert select(cells, patterns) == [cells[number] for number in wanted]


def test_a_pattern_that_names_nothing_says_what_is_near() -> None:
    cells = parse_case({"sweep": {"model": "tiny", "stage": [1, 2, 3]}}, "case").expanded
    with pytest.raises(
        CallError, match="no cell's name is like 'zero3 fp32 tiny' or has"
    ) as caught:
        select(cells, ["zero2*", "zero3 fp32 tiny"])
    assert caught.value.where == "--only"
    assert caught.value.remedy.startswith("of the 3 cells these are near: 'zero3 bf16 tiny 1 x ")


@pytest.mark.parametrize(
    ("keys", "steps"),
    [({}, 3), ({"cells": [{"offload": "optimizer"}]}, 5), ({"warmup_steps": 1}, 1)],
)
def test_offload_warms_up_for_longer_and_all_cells_alike(keys: dict[str, Any], steps: int) -> None:
    assert parse_case({"sweep": {"model": "tiny"}, **keys}, "case").warmup == steps


def test_keys_are_of_content() -> None:
    sizes = [{"model": "tiny", "stage": 1}, {"stage": 1, "model": "tiny"}, {"model": "tiny"}]
    keys = [parse_case({"sweep": sweep}, "case").expanded[0].key for sweep in sizes]
    assert keys[0] == keys[1] != keys[2]


def test_inline_models_have_a_name() -> None:
    model = {"preset": "tiny", "num_hidden_layers": 3}
    assert parse_case({"sweep": {"model": model}}, "case").expanded[0].model_name == "h64-l3-v256"


@pytest.mark.parametrize(
    ("content", "where", "what"),
    [
        ({}, "case:sweep", "'sweep' is missing"),
        ({"sweep": {}}, "case:sweep.model", "'model' is missing"),
        ({"sweep": {"model": "tiny", "stages": 1}}, "case:sweep.stages", "unknown key 'stages'"),
        ({"sweep": {"model": "tiny", "stage": 4}}, "case:sweep.stage", "4: "),
        ({"sweep": {"model": "tiny", "stage": []}}, "case:sweep.stage", "[]: "),
        ({"sweep": {"model": "tiny", "offload": "disk"}}, "case:sweep.offload", "'disk': "),
        ({"sweep": {"model": "tini"}}, "case:sweep.model", "tini"),
        ({"sweep": {"model": "tiny"}, "cells": [{"stage": 9}]}, "case:cells.stage", "9: "),
        ({"sweep": {"model": "tiny"}, "reference": {"stage": 3}}, "case:reference", "no cell is"),
        ({"sweep": {"model": "tiny"}, "steps": 0}, "case:steps", "0: "),
        ({"sweep": {"model": "tiny"}, "timeout_s": -1}, "case:timeout_s", "-1: "),
    ],
)
def test_errors_say_where(content: dict[str, Any], where: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_case(content, "case")
    assert caught.value.where == where
    assert what in caught.value.what
    assert caught.value.remedy


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(CallError, match="cannot be read"):
        read_case(tmp_path / "none.json")
    (tmp_path / "list.json").write_text(json.dumps([]))
    with pytest.raises(CallError, match="holds a list"):
        read_case(tmp_path / "list.json")


def test_axes_are_all_in_a_cell() -> None:
    cell = parse_case({"sweep": {"model": "tiny"}}, "case").expanded[0]
    assert set(Axes.model_fields) <= set(cell.to_dict())


def test_the_reference_may_name_its_model() -> None:
    model = {"preset": "tiny", "num_hidden_layers": 1}
    content = {
        "models": {"flat": model},
        "sweep": {"model": ["tiny", "flat"]},
        "reference": {"model": "flat"},
    }
    case = parse_case(content, "case")
    assert [matches(cell, case.reference) for cell in case.expanded] == [False, True]
    assert [matches(cell, {"model": model}) for cell in case.expanded] == [False, True]
