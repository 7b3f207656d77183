"""What the profiler says of steps, as a row has it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import torch

from ds_llama.bench import operations


def test_the_longest_operation_comes_first(tmp_path: Path) -> None:
    weights = torch.rand(256, 256)

    def step() -> None:
        for _ in range(3):
            (weights @ weights).add_(1)

    trace = tmp_path / "profiles" / "cell.json.gz"
    found = operations.profile(step, torch.device("cpu"), trace)
    calls = {each["name"]: each["calls"] for each in found["operations"]}
    assert calls["aten::mm"] == calls["aten::add_"] == 3
    seconds = [each["self_s"] for each in found["operations"]]
    assert seconds == sorted(seconds, reverse=True)
    assert 0 < sum(seconds) <= found["self_s"] * (1 + 1e-9)
    assert json.loads(json.dumps(found)) == found
    with gzip.open(trace) as file:
        assert json.load(file)["traceEvents"]
    assert "aten::mm" in (tmp_path / "profiles" / "cell.txt").read_text()
