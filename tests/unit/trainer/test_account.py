"""The recording of a run's first steps: when it counts, and its table."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ds_llama.measure import accounting
from ds_llama.trainer import account
from ds_llama.trainer.account import STEPS, Recording, table


def run(*, asked: bool) -> Any:
    return SimpleNamespace(train=SimpleNamespace(accounting=asked))


def step(recording: Recording, kept: list[torch.Tensor]) -> None:
    for name in ("forward", "backward", "step"):
        with accounting.phase(name):
            kept.append(torch.zeros(10))
    recording.step_made()


def test_a_run_that_does_not_ask_is_not_counted() -> None:
    with Recording.of(run(asked=False)) as recording:
        assert recording is None
        assert accounting.entered() is None


def test_the_first_steps_and_the_first_save_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account.ranks, "gather", lambda value: [value, value])
    kept: list[torch.Tensor] = []
    with Recording.of(run(asked=True)) as recording:
        assert recording is not None
        with accounting.phase("construct"):
            kept.append(torch.zeros(100))
        for _ in range(STEPS + 2):
            step(recording, kept)
        assert accounting.entered() is None  # after STEPS of them nothing is slower
        for _ in range(2):
            with recording.saving(), accounting.phase("save"):
                kept.append(torch.zeros(1000))
        recording.report(tmp_path)
    names = [found.name for found in recording.account.phases]
    assert names == ["construct", *["forward", "backward", "step"] * STEPS, "save"]
    text = capsys.readouterr().out.splitlines()
    assert text[0].split() == ["live", "bytes", "device", "peak", "RSS", "peak"]
    # 100, and ten for each phase, of 4 bytes; the second save was not counted
    assert text[1].split()[:3] == ["construct", "400", "B"]
    assert text[4].split()[:3] == ["step", "760", "B"]
    assert text[5].split()[0] == "save"
    assert (tmp_path / "accounting.json").exists()


def test_an_error_ends_the_account() -> None:
    with pytest.raises(ZeroDivisionError), Recording.of(run(asked=True)):
        raise ZeroDivisionError
    assert accounting.entered() is None


def test_on_a_device_its_allocator_stands_beside() -> None:
    sizes = {"now_bytes": 1024, "peak_bytes": 2048}
    process = {
        "device_peak_bytes": 4096,
        "device_peak_reserved_bytes": 8192,
        "peak_rss_bytes": None,
    }
    lines = table([{"name": "step", "device": sizes, "host": sizes, "process": process}])
    assert "allocated peak" in lines
    assert "RSS" not in lines
    row = lines.splitlines()[1].split()
    assert row == ["step", "1", "KiB", "2", "KiB", "1", "KiB", "2", "KiB", "4", "KiB", "8", "KiB"]
