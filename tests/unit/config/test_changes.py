"""`config.changes`: nothing where nothing differs, and each difference where something does."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ds_llama.config.changes import changes

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.integers()),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=6,
)
TREES = st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=4)


@given(TREES)
def test_the_same_has_no_changes(tree: dict[str, Any]) -> None:
    assert changes(tree, copy.deepcopy(tree)) == []


@given(TREES, TREES)
def test_there_are_changes_only_where_something_differs(
    old: dict[str, Any], new: dict[str, Any]
) -> None:
    assert bool(changes(old, new)) == (repr(_sorted(old)) != repr(_sorted(new)))


def _sorted(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _sorted(tree[key]) for key in sorted(tree)}
    return tree


def test_a_change_is_a_line_and_what_only_one_has_a_paragraph() -> None:
    old = {"a": {"stage": 2, "gone": 1, "too": 2}, "list": [1], "flag": True, "top": 1}
    new = {"a": {"stage": 3, "new": {"x": None}}, "list": [1, 2], "flag": 1}
    assert changes(old, new) == [
        "a.stage: 2 -> 3",
        "list: [1] -> [1, 2]",
        "flag: true -> 1",
        "a, no longer: gone 1, too 2",
        'a, new: new {"x": null}',
        "no longer: top 1",
    ]


def test_lines_fit_a_terminal_and_nothing_is_cut() -> None:
    many = {f"a_key_of_some_length_{number}": number for number in range(9)}
    lines = changes({"a": {}}, {"a": many})
    assert all(len(line) <= 78 for line in lines)
    assert " ".join(line.strip() for line in lines) == "a, new: " + ", ".join(
        f"{key} {value}" for key, value in many.items()
    )
    assert changes({"a": "x" * 100}, {"a": 1}) == ["a:", f'  "{"x" * 100}"', "  -> 1"]


def test_what_the_deepspeed_json_says_is_not_said_twice() -> None:
    def of(micro: int, stage: int) -> dict[str, Any]:
        zero = {"zero_optimization": {"stage": stage}, "train_micro_batch_size_per_gpu": micro}
        return {"deepspeed": zero, "resolved": {"stage": stage, "micro_batch_size": micro}}

    assert changes(of(1, 2), of(2, 3)) == [
        "deepspeed.zero_optimization.stage: 2 -> 3",
        "deepspeed.train_micro_batch_size_per_gpu: 1 -> 2",
    ]
    assert changes({"resolved": {"stage": 2}}, {"resolved": {"stage": 3}}) == [
        "resolved.stage: 2 -> 3"
    ]
