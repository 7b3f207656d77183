"""`ds-llama bench comm` on the real launcher: two ranks, small sizes, and one that no host has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ds_llama.bench import comm
from tests.end_to_end.conftest import Workspace


def test_every_collective_is_measured(tmp_path: Path) -> None:
    space = Workspace(tmp_path)
    words = ("--sizes", "1MiB,900TB", "--out", "links", "--json")
    done = space.run("bench", "comm", *words)
    found = json.loads(done.stdout)
    assert json.loads((tmp_path / "links" / "comm.json").read_text()) == found
    assert (found["device"], found["backend"], found["world_size"]) == ("cpu", "gloo", 2)
    measured = {(row["collective"], row["dtype"], row["bytes"]) for row in found["rows"]}
    series = comm.series("bf16", "bf16")
    assert measured == {(*each, size) for each in series for size in (4096, 2**20)}
    for row in found["rows"]:
        assert row["calls"] >= 5
        assert 0 < row["seconds"]["p10"] <= row["seconds"]["median"] <= row["seconds"]["p90"] < 60
        times = {"all_reduce": 1.0, "all_gather": 0.5, "reduce_scatter": 0.5, "all_to_all": 0.5}
        bus = row["algorithm_bytes_per_s"] * times.get(row["collective"], 1.0)
        assert row["bus_bytes_per_s"] == pytest.approx(bus)
        assert row["ring_s"] > 0
    assert {(each["collective"], each["dtype"]) for each in found["left_out"]} == set(series)
    assert all("a rank, and " in each["reason"] for each in found["left_out"])
    sent = [row for row in found["rows"] if row["collective"] == "send_recv"]
    assert found["link"]["bytes_per_s"] == max(row["bus_bytes_per_s"] for row in sent)
    assert found["link"]["latency_bytes"] == 4096
    assert [stage["stage"] for stage in found["stages"]] == [0, 1, 2, 3]
    assert all(stage["seconds"] > 0 for stage in found["stages"][1:])  # bf16 has no stage 0
    assert found["provenance"]["command"][:3] == ["ds-llama", "bench", "comm"]
