"""What an earlier report left: removed if it is the report's own, and only then."""

from __future__ import annotations

import shutil
from pathlib import Path

from ds_llama.bench.report.stale import left_behind, record
from ds_llama.bench.report.write import make
from tests.unit.bench.report.conftest import Write, changed, measured_rows, plain


def test_plots_of_rows_that_are_gone_are_removed(folder: Write) -> None:
    first = plain(measured_rows()[0])
    other = changed(first, "other", sequence_length=64)
    path = folder([first, other])
    names = {file.name for file in make(path).files}
    assert {"throughput-tiny-4x128.png", "throughput-tiny-4x64.png"} <= names
    mine = path / "mine-tiny-4x64.png"
    shutil.copy(path / "throughput-tiny-4x64.png", mine)
    changed_by_hand = path / "throughput-tiny-4x128.png"
    changed_by_hand.write_bytes(b"mine")
    folder([first])
    report = make(path)
    left = {file.name for file in path.iterdir()}
    assert [file.name for file in report.removed] == ["throughput-tiny-4x64.png"]
    assert not left & {file.name for file in report.removed}
    assert {mine.name, changed_by_hand.name, "throughput.png", "rows.csv"} <= left
    assert report.to_dict()["removed"] == [str(file) for file in report.removed]
    assert make(path).removed == ()


def test_only_what_was_recorded_and_is_in_the_folder(tmp_path: Path) -> None:
    folder, outside = tmp_path / "in", tmp_path / "out.png"
    folder.mkdir()
    files = {"a.png": b"1", "b.png": b"2", "../out.png": b"3", "rows.jsonl": b"4", "l.png": b"5"}
    for name, data in files.items():
        if name != "l.png":
            (folder / name).write_bytes(data)
    (folder / "real").write_bytes(b"5")
    (folder / "l.png").symlink_to(folder / "real")
    assert left_behind(folder, "report.html", {}) == []
    (folder / "report.html").write_text(f"<html></html>{record(files)}\n")
    assert left_behind(folder, "report.html", {"b.png": b"2"}) == [folder / "a.png"]
    (folder / "report.html").write_bytes(b"\xff")
    assert left_behind(folder, "report.html", {}) == []
    assert outside.exists()
