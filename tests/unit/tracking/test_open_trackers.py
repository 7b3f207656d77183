from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ds_llama.config.run import TrackingConfig
from ds_llama.errors import MachineError, RunError
from ds_llama.tracking import jsonl, open_trackers


def _run(**tracking: Any) -> Any:
    """The two things of a Run that are looked at."""
    return SimpleNamespace(
        tracking=TrackingConfig(**tracking), model_dump=lambda mode: {"train": {"steps": 3}}
    )


def test_console_and_jsonl_by_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trackers = open_trackers(_run(), tmp_path, total_steps=2)
    assert [tracker.name for tracker in trackers] == ["metrics.jsonl", "console"]
    for step in (1, 2):
        for tracker in trackers:
            tracker.log({"step": step, "loss": 2.0})
    for tracker in trackers:
        tracker.close("finished")
    assert [row["step"] for row in jsonl.read_rows(tmp_path / "metrics.jsonl")] == [1, 2]
    assert "step 2/2  loss 2.0000" in capsys.readouterr().out


def test_a_quiet_run_still_has_its_record(tmp_path: Path) -> None:
    trackers = open_trackers(_run(console=False), tmp_path, total_steps=2)
    assert [tracker.name for tracker in trackers] == ["metrics.jsonl"]
    trackers[0].close("finished")


def test_rows_after_the_resumed_step_go(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    open_trackers(_run(console=False), tmp_path, total_steps=5, start_step=2)[0].close("finished")
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize(
    ("every", "log", "kept"),
    [
        (2, 3, {"validation_loss": None, "nonfinite": {"validation_loss": "nan"}}),
        (3, 1, {}),
        (None, 2, {}),
        (3, 3, None),
    ],
)
def test_a_run_that_goes_on_has_nothing_of_its_first_end(
    tmp_path: Path, every: int | None, log: int, kept: dict[str, Any] | None
) -> None:
    """It measured and wrote more in step 4 than a run that goes on there."""
    run = _run(console=False)
    run.evaluation = SimpleNamespace(every_steps=every)
    run.train = SimpleNamespace(log_every_steps=log)
    path = tmp_path / "metrics.jsonl"
    end = {"validation_loss": math.nan, "ended_early": True}
    for goes_on in (False, True):
        path.write_text(jsonl.to_line({"step": 3}) + jsonl.to_line({"step": 4, **end}))
        tracker = open_trackers(run, tmp_path, total_steps=9, start_step=4, goes_on=goes_on)[0]
        tracker.close("finished")
        rows = jsonl.read_rows(path)
        if not goes_on:
            assert rows[1]["ended_early"]
    assert rows == [{"step": 3}] + ([] if kept is None else [{"step": 4, **kept}])


def test_a_tracker_that_breaks_is_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("a file where a folder should be")
    trackers = open_trackers(_run(console=False, tensorboard=True), tmp_path, total_steps=2)
    for tracker in trackers:
        tracker.log({"step": 1, "loss": 2.0})
        tracker.close("finished")
    assert "warning: TensorBoard failed to start" in capsys.readouterr().err
    assert len(jsonl.read_rows(tmp_path / "metrics.jsonl")) == 1


def test_the_record_that_cannot_be_written_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(RunError, match="the run's metrics cannot be written"):
        open_trackers(_run(console=False), tmp_path, total_steps=2)


def test_what_started_is_closed_when_another_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("NETRC", raising=False)
    with pytest.raises(MachineError, match="W&B is to be online"):
        open_trackers(_run(wandb={"mode": "online"}), tmp_path, total_steps=2)


def test_the_resolved_run_is_preferred(tmp_path: Path) -> None:
    from ds_llama import tracking

    assert tracking._resolved(_run(), tmp_path) == {"train": {"steps": 3}}
    (tmp_path / "run.json").write_text(json.dumps({"resolved": {"versions": 1}}))
    assert tracking._resolved(_run(), tmp_path) == {"resolved": {"versions": 1}}
    (tmp_path / "run.json").write_text("{")
    assert tracking._resolved(_run(), tmp_path) == {"train": {"steps": 3}}
