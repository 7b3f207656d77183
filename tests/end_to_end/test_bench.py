"""`ds-llama bench` on the real launcher: interrupted, gone on with, its rows true."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

from tests.end_to_end.conftest import Workspace

CASE = {
    "sweep": {"model": "tiny", "stage": [2, 3], "sequence_length": 64},
    "steps": 3,
    "warmup_steps": 1,
    "repeats": 1,
    "timeout_s": 120,
}


def test_a_benchmark_is_interrupted_and_gone_on_with(tmp_path: Path) -> None:
    space, out = Workspace(tmp_path), tmp_path / "out"
    (tmp_path / "case.json").write_text(json.dumps(CASE))
    words = ("bench", "case.json", "--out", "out")
    first = space.start(*words)
    deadline = time.monotonic() + 120
    while len(list(out.glob("logs/*"))) < 2:  # the second launch has begun
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    printed, said = first.communicate(timeout=60)
    assert first.returncode == 130, said
    assert printed == ""
    assert "the same command goes on" in said
    (kept,) = rows_of(out)
    assert not list((out / "cells").iterdir())

    found = json.loads(space.run(*words, "--json").stdout)
    assert [row["status"] for row in found["rows"]] == ["ok", "ok"]
    assert found["rows"] == rows_of(out)
    assert found["rows"][0] == kept
    for row in found["rows"]:
        check(row)


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


def check(row: dict[str, Any]) -> None:
    assert row["tokens_per_step"] == 63
    assert row["step_s"]["steps"] == 3
    assert row["step_s"]["p10"] <= row["step_s"]["median"] <= row["step_s"]["p90"]
    predicted, measured = (row["memory"][which] for which in ("predicted", "measured"))
    for name in ("device_peak_bytes", "device_steady_bytes"):
        assert abs(predicted[name] / measured[name] - 1) < 0.005, (name, predicted, measured)
    assert row["peak_flops"]["measured"] > 1e9
    assert 0 < row["mfu"] < row["hfu"] < 1
    assert row["provenance"]["command"][:3] == ["ds-llama", "bench", "case.json"]
    assert row["config"]["run"]["deepspeed"]["zero_optimization"]["stage"] == row["stage"]
