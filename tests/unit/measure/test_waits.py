"""Which copies cross the host link; collectives are in the cells of `bench`."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ds_llama.measure.waits import _part

ATEN = torch.ops.aten


@pytest.mark.parametrize(
    ("source", "target", "part"),
    [("cuda", "cpu", "host link"), ("cpu", "cuda", "host link"), ("cuda", "cuda", None)],
)
def test_copies_between_host_and_device(source: str, target: str, part: str | None) -> None:
    with FakeTensorMode():
        here, there = (torch.empty(4, device=device) for device in (source, target))
    assert _part(ATEN.copy_.default, (there, here), {}) == part
    assert _part(ATEN._foreach_copy_.default, ([there], [here]), {}) == part
    assert _part(ATEN._to_copy.default, (here,), {"device": torch.device(target)}) == part
    assert _part(ATEN._to_copy.default, (here,), {"dtype": torch.float16}) is None
    assert _part(ATEN.add.Tensor, (here, there), {}) is None
