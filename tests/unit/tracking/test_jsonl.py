from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_llama.errors import RunError
from ds_llama.tracking import jsonl
from ds_llama.tracking.jsonl import JsonlTracker, read_rows, to_line, truncate_after


def _write(output: Path, steps: range, start_step: int = 0) -> Path:
    tracker = JsonlTracker(start_step)
    tracker.start({}, output)
    for step in steps:
        tracker.log({"step": step, "loss": 1.0 / step, "mfu": None, "skipped": False})
    tracker.close("finished")
    return output / "metrics.jsonl"


def _steps(path: Path) -> list[int]:
    return [row["step"] for row in read_rows(path)]


def test_a_row_is_on_disk_when_log_returns(tmp_path: Path) -> None:
    tracker = JsonlTracker()
    tracker.start({}, tmp_path / "new")
    for step in (1, 2):
        tracker.log({"step": step, "loss": 2.5})
        assert _steps(tmp_path / "new" / "metrics.jsonl") == list(range(1, step + 1))
    tracker.close("stopped")
    tracker.close("stopped")


def test_a_resume_cuts_the_steps_that_are_made_again(tmp_path: Path) -> None:
    path = _write(tmp_path, range(1, 8))
    _write(tmp_path, range(5, 7), start_step=4)
    assert _steps(path) == [1, 2, 3, 4, 5, 6]


def test_a_rollback_cuts_the_steps_that_are_made_again(tmp_path: Path) -> None:
    tracker = JsonlTracker()
    tracker.start({}, tmp_path)
    for step in (1, 2, 3, 4):
        tracker.log({"step": step, "loss": 1.0})
    tracker.rewind(2)
    assert _steps(tmp_path / "metrics.jsonl") == [1, 2]
    tracker.log({"step": 3, "loss": 2.0})
    tracker.close("finished")
    assert [row["loss"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1.0, 1.0, 2.0]


def test_a_start_from_zero_cuts_everything(tmp_path: Path) -> None:
    _write(tmp_path, range(1, 4))
    assert _steps(_write(tmp_path, range(1, 3))) == [1, 2]


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    path = _write(tmp_path, range(1, 4))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 4, "los')
    assert _steps(path) == [1, 2, 3]
    truncate_after(path, 10)
    assert path.read_bytes() == whole


def test_a_complete_row_without_its_newline_is_torn_too(tmp_path: Path) -> None:
    """Appended to as it is, it would swallow the next row."""
    path = _write(tmp_path, range(1, 3))
    path.write_bytes(path.read_bytes()[:-1])
    _write(tmp_path, range(2, 4), start_step=1)
    assert _steps(path) == [1, 2, 3]


def test_nothing_to_cut_leaves_the_file_alone(tmp_path: Path) -> None:
    path = _write(tmp_path, range(1, 4))
    before = path.stat()
    truncate_after(path, 3)
    assert path.stat().st_ino == before.st_ino
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    truncate_after(tmp_path / "missing.jsonl", 3)
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_what_json_lacks_is_null_and_named(tmp_path: Path) -> None:
    row = {"step": 7, "loss": math.nan, "grad_norm": math.inf, "lr": -math.inf, "mfu": None}
    parsed = json.loads(to_line(row), parse_constant=pytest.fail)
    assert parsed == {
        "step": 7,
        "loss": None,
        "grad_norm": None,
        "lr": None,
        "mfu": None,
        "nonfinite": {"loss": "nan", "grad_norm": "inf", "lr": "-inf"},
    }


@given(
    st.dictionaries(
        st.text(max_size=8), st.none() | st.booleans() | st.integers() | st.floats(), max_size=6
    ),
    st.integers(0, 10**12),
)
def test_any_row_is_one_line_of_valid_json(row: dict[str, object], step: int) -> None:
    line = to_line({**row, "step": step})
    assert line.count("\n") == 1
    assert json.loads(line, parse_constant=pytest.fail)["step"] == step


@given(cut=st.integers(0, 400), step=st.integers(0, 12))
def test_however_a_run_was_killed_the_rest_is_whole(
    tmp_path_factory: pytest.TempPathFactory, cut: int, step: int
) -> None:
    path = _write(tmp_path_factory.mktemp("cut"), range(1, 10))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - cut] if cut else data)
    survived = data[: len(data) - cut].count(b"\n")
    truncate_after(path, step)
    assert _steps(path) == list(range(1, min(survived, step) + 1))
    assert path.read_bytes() == data[: path.stat().st_size]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError) as caught:
        JsonlTracker().start({}, tmp_path / "file" / "run")
    assert "the run's metrics cannot be written: Not a directory" in caught.value.what
    assert caught.value.where.endswith("metrics.jsonl")
    assert "free space or mend the folder's permissions" in caught.value.remedy


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    (tmp_path / jsonl.FILE_NAME).symlink_to("/dev/full")
    tracker = JsonlTracker()
    tracker._path = tmp_path / jsonl.FILE_NAME
    tracker._file = tracker._path.open("w")
    with pytest.raises(RunError, match="No space left on device"):
        tracker.log({"step": 1})
    with pytest.raises(RunError, match="No space left on device"):
        tracker.close("failed")
