"""What is no benchmark's folder, and rows that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ds_llama.bench.report.folder import read_folder
from ds_llama.errors import CallError, DataError
from tests.unit.bench.report.conftest import DATA, Write, changed, measured_rows, real_rows

ROW = measured_rows()[0]


def test_what_is_read(folder: Write) -> None:
    found = read_folder(DATA)
    assert len(found.cells) == len(real_rows()) == 12
    assert found.reference == {"stage": 2, "precision": "fp32"}
    assert "tiny" in found.description
    bare = read_folder(folder([ROW]))
    assert (bare.description, bare.reference, bare.name) == ("", {}, "bench")


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"key": "a", "sta', "no JSON: Unterminated string starting at at 14"),
        ("[]", "it holds a list"),
        ("{}", "key: Field required"),
        (json.dumps({**ROW, "tokens_per_s": "fast"}), "tokens_per_s: Input should be a valid"),
        (json.dumps(changed(ROW, step_s__medians=[])), "step_s.medians: List should have"),
        (json.dumps(changed(ROW, memory__measured__peak_phase=3)), "memory.measured.peak_phase:"),
    ],
)
def test_damaged_lines_are_named(folder: Write, line: str, what: str) -> None:
    path = folder([ROW])
    with (path / "rows.jsonl").open("a") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(DataError) as caught:
        read_folder(path)
    assert caught.value.where == f"{path / 'rows.jsonl'}:3"
    assert what in caught.value.what
    assert "measures its cell again" in caught.value.remedy


@pytest.mark.parametrize("version", [2, "2", None, True])
def test_rows_of_a_later_version_are_refused(folder: Write, version: object) -> None:
    path = folder([ROW, {**ROW, "key": "another", "format_version": version}])
    with pytest.raises(DataError) as caught:
        read_folder(path)
    assert caught.value.where == f"{path / 'rows.jsonl'}:2"
    assert f"format_version is {version!r}, and this ds_llama reads up to 1" in caught.value.what
    assert "the version of ds_llama that wrote it" in caught.value.remedy
    assert len(read_folder(folder([{**ROW, "format_version": 1}])).cells) == 1


def test_no_text(folder: Write) -> None:
    path = folder([ROW])
    (path / "rows.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="byte 0 of the file is no UTF-8"):
        read_folder(path)


def test_no_folder_no_rows(folder: Write, tmp_path: Path) -> None:
    for path, what in (
        (tmp_path / "none", "this does not exist"),
        (DATA / "case.json", "this is a file"),
        (tmp_path, "it has no rows.jsonl"),
    ):
        with pytest.raises(CallError, match=what) as caught:
            read_folder(path)
        assert "ds-llama bench" in caught.value.remedy
    with pytest.raises(DataError, match="holds no row yet"):
        read_folder(folder([]))


def test_a_damaged_case(folder: Write) -> None:
    path = folder([ROW], case={})
    (path / "case.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        read_folder(path)
    for text, what in (
        ('{"reference": [1]}', "reference: Input should be"),
        ("[]", "the whole: Input"),
    ):
        (path / "case.json").write_text(text)
        with pytest.raises(DataError, match="is no benchmark's case") as caught:
            read_folder(path)
        assert what in caught.value.what
