"""A calibration in small: every figure is there, and the plan takes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ds_llama.cli.calibrate import calibrate, text
from ds_llama.errors import CallError
from ds_llama.measure import rates
from ds_llama.planner import hardware


def test_a_machine_is_measured_and_the_plan_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "BUDGET_S", 0.01)
    monkeypatch.setattr(rates, "FILE_BYTES", 2**22)
    target, profile = calibrate(tmp_path / "new" / "machine.json", tmp_path)
    assert json.loads(target.read_text()) == profile
    found = hardware.find(str(target))
    figures = ("memory_bytes_per_s", "host_memory_bytes_per_s", "link_bytes_per_s", "launch_s")
    disk = ("nvme_read_bytes_per_s", "nvme_write_bytes_per_s", "collective_latency_s")
    for name in (*figures, *disk):
        assert getattr(found, name) > 0, name
    assert (found.peak_flops("float32") or 0) > 1e6
    assert found.shared is not torch.cuda.is_available()
    shown = text(target, profile)
    assert "matmul in float32" in shown
    assert f"--hardware {target}" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["new"]  # nothing is left of the disk's


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CallError) as caught:
        calibrate(tmp_path / "file" / "machine.json")
    assert caught.value.what.startswith("the profile cannot be measured or written: ")
    assert caught.value.where.startswith(str(tmp_path / "file"))
    assert (
        caught.value.remedy
        == "write it elsewhere with --out FILE, from a folder that can be written"
    )


def test_a_command_without_a_run_says_what_is_missing() -> None:
    from ds_llama.cli.plan import command

    with pytest.raises(CallError) as caught:
        command()
    assert caught.value.what == "plan which run?"
    with pytest.raises(CallError) as caught:
        command(Path("run.json"), out=Path("x"))
    assert caught.value.what == "--out says where --calibrate writes"
