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


def test_a_change_is_a_line() -> None:
    old = {"a": {"stage": 2, "gone": 1}, "list": [1], "flag": True, "long": "x" * 100}
    new = {"a": {"stage": 3, "new": {"x": None}}, "list": [1, 2], "flag": 1, "long": "x" * 99}
    assert changes(old, new) == [
        "a.stage: 2 -> 3",
        "a.gone: 1 -> absent",
        'a.new: absent -> {"x": null}',
        "list: [1] -> [1, 2]",
        "flag: true -> 1",
        f'long: "{"x" * 56}... -> "{"x" * 56}...',
    ]
