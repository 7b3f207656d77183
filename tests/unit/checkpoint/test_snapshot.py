from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ds_llama.checkpoint.snapshot import Snapshot

TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)


class Scaler:
    """As DeepSpeed's loss scaler: an object among the tensors, which training changes."""

    def __init__(self) -> None:
        self.scale, self.history = 2.0, [1, 2]


def _content() -> dict[str, Any]:
    flat = torch.arange(12, dtype=torch.float32)
    return {
        "flat": flat,
        "views": [flat[3:7], flat.view(3, 4).T, flat[:0]],
        "half": torch.arange(5).bfloat16(),
        "parameter": torch.nn.Parameter(torch.ones(2, 3), requires_grad=False),
        "scalar": torch.tensor(7, dtype=torch.int64),
        "nothing": torch.empty(0),
        "scaler": Scaler(),
        "groups": [{"lr": 0.1, "betas": (0.9, 0.95)}],
        "none": None,
    }


def _saved(content: Any) -> dict[str, Any]:
    """What torch.save and torch.load make of it: the oracle."""
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _equal(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        same = (type(one), one.dtype, one.stride()) == (type(two), two.dtype, two.stride())
        return same and one.requires_grad == two.requires_grad and torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(_equal(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(_equal, one, two))
    return vars(one) == vars(two) if isinstance(one, Scaler) else bool(one == two)


def _train_on(content: dict[str, Any]) -> None:
    content["flat"].add_(1)
    content["half"].zero_()
    content["parameter"].data.fill_(9)
    content["scalar"].add_(1)
    content["scaler"].scale = 1.0
    content["scaler"].history.append(3)
    content["groups"][0]["lr"] = 0.2
    content["late"] = 1


def test_it_is_what_torch_would_have_saved_whatever_comes_after() -> None:
    content = _content()
    expected, snapshot = _saved(content), Snapshot(content)
    _train_on(content)
    assert _equal(snapshot.restore(), expected)
    assert _equal(_saved(snapshot.restore()), expected)
    assert not _equal(_saved(content), expected)  # the comparison sees what it is to see


def test_views_stay_views_of_one_storage() -> None:
    snapshot = Snapshot(_content())
    found = snapshot.restore()
    found["flat"][4] = -1
    assert found["views"][0].tolist() == [3.0, -1.0, 5.0, 6.0]
    assert found["views"][1][0, 1] == -1
    elements = 12 * 4 + 5 * 2 + 6 * 4 + 8
    assert elements < snapshot.nbytes < elements + 2000  # the flat storage once, and the rest


@given(st.sampled_from(TYPES), st.lists(st.integers(0, 4), max_size=3), st.randoms())
def test_tensors_of_any_type_and_shape(dtype: torch.dtype, shape: list[int], random: Any) -> None:
    tensor = torch.randint(0, 2, shape).to(dtype)
    tensor = tensor.permute(random.sample(range(len(shape)), len(shape)))
    before = tensor.clone()
    found = Snapshot([tensor]).restore()[0]
    tensor.zero_()
    assert (found.dtype, found.stride()) == (tensor.dtype, tensor.stride())
    assert torch.equal(found, before)


def test_what_cannot_be_saved_is_said_before_training_goes_on() -> None:
    with pytest.raises((AttributeError, TypeError), match="pickle"):
        Snapshot({"hook": lambda: None})
