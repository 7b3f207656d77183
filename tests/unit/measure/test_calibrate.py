"""A calibration in small: every figure is there, and the plan takes it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

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


def script() -> ModuleType:
    path = Path(__file__).parents[3] / "benchmarks" / "calibrated_error.py"
    spec = importlib.util.spec_from_file_location("calibrated_error", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["calibrated_error"] = module
    spec.loader.exec_module(module)
    return module


def test_the_comparison_without_a_profile_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "none.json")
    monkeypatch.setattr(sys, "argv", ["calibrated_error.py", "--hardware", path])
    with pytest.raises(SystemExit) as caught:
        script().main()
    assert caught.value.code == (
        "error: no hardware profile there: No such file or directory\n"
        f"where: {path}\nremedy: measure this machine: ds-llama plan --calibrate"
    )


def test_a_row_of_the_comparison(tmp_path: Path) -> None:
    cell = ("tiny", 3, 2)
    row = script().row_of(cell, hardware.find("h100"), [10.0, 30.0, 20.0], tmp_path)
    assert (row.median, row.fastest) == (20.0, 30.0)
    assert row.predicted / 30 - 1 == pytest.approx(row.error_of_fastest)
    assert "tiny       stage 3 ranks 2: median       20 tokens/s" in str(row)
    unknown = script().row_of(cell, hardware.find("t4"), [10.0], tmp_path)
    assert str(unknown).endswith("predicted -: the profile lacks a figure for it")
