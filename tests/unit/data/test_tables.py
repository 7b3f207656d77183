"""Parquet, Arrow and folders that `datasets` saved."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from ds_llama.data.sources import Options, Record, find_files, read
from ds_llama.errors import CallError, DataError, MachineError

KINDS = ["parquet", "file", "stream"]
TEXTS = ["first ünï", None, "", "second\nline", "日本 \U0001f600"]


def write(folder: Path, table: Any, kind: str, name: str = "a") -> Path:
    path = folder / (f"{name}.parquet" if kind == "parquet" else f"{name}.arrow")
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=3)
    else:
        new = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    return path


def shown(records: Iterator[Record]) -> list[tuple[str, str, str | None]]:
    return [(r.text, r.where.rpartition("/")[2], r.problem) for r in records]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "type_",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_each_row_is_a_document(tmp_path: Path, kind: str, type_: Any) -> None:
    other = [{"x": i} for i in range(5)]
    column = pa.array(TEXTS, pa.string()).cast(type_)
    path = write(tmp_path, pa.table({"other": other, "text": column}), kind)
    records = list(read(path, Options()))
    assert shown(iter(records)) == [
        ("first ünï", f"{path.name}:1", None),
        ("", f"{path.name}:2", 'field "text" is null'),
        ("", f"{path.name}:3", None),
        ("second\nline", f"{path.name}:4", None),
        ("日本 \U0001f600", f"{path.name}:5", None),
    ]
    positions = [r.position for r in records]
    assert positions == sorted(positions)
    assert 0 < positions[-1] <= path.stat().st_size


@pytest.mark.parametrize("kind", KINDS)
def test_strings_that_are_no_utf8_are_mended(tmp_path: Path, kind: str) -> None:
    raw = pa.array([b"good", b"br\xffken"], pa.binary())
    broken = pa.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    path = write(tmp_path, pa.table({"text": broken}), kind)
    assert [r.text for r in read(path, Options())] == ["good", "br\ufffdken"]
    good, bad = read(path, Options(objects=True))
    assert good.value == {"text": "good"}
    assert bad.problem is not None
    assert bad.problem.startswith("not UTF-8: ")
    binary = write(tmp_path, pa.table({"text": raw}), kind, "b")
    assert [r.text for r in read(binary, Options())] == ["good", "br\ufffdken"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_may_be_had_whole(tmp_path: Path, kind: str) -> None:
    rows = [{"messages": [{"role": "user", "content": f"{i}"}], "id": i} for i in range(200)]
    path = write(tmp_path, pa.Table.from_pylist(rows), kind)
    records = list(read(path, Options(objects=True)))
    assert [r.value for r in records] == rows
    assert json.loads(records[7].text) == rows[7]
    assert records[-1].where == f"{path}:200"


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_without_the_column_is_named(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, pa.table({"body": ["x"], "id": [1]}), kind)
    with pytest.raises(DataError) as caught:
        list(read(path, Options()))
    assert caught.value.what == 'there is no column "text"; it has body, id'
    assert caught.value.where == str(path)
    assert "--text-field" in caught.value.remedy
    assert [r.text for r in read(path, Options(text_field="body"))] == ["x"]
    with pytest.raises(DataError) as caught:
        list(read(path, Options(text_field="id")))
    assert caught.value.what == 'column "id" is not text but int64'


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_off_file_is_named(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, pa.table({"text": ["x" * 3000] * 30}), kind)
    whole = path.read_bytes()
    for cut in (len(whole) - 8, len(whole) // 2, 10, 0):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError) as caught:
            list(read(path, Options()))
        assert "damaged after row" in caught.value.what or "cut off" in caught.value.what
        assert caught.value.where == str(path)


def test_a_damaged_page_is_named_with_its_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"{i} " * 400 for i in range(300)]})
    pyarrow.parquet.write_table(table, path, row_group_size=100, use_dictionary=False)
    content = bytearray(path.read_bytes())
    group = pyarrow.parquet.ParquetFile(path).metadata.row_group(2).column(0)
    content[group.data_page_offset : group.data_page_offset + 60] = b"\xff" * 60
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read(path, Options()))
    assert caught.value.what.startswith(
        "the Parquet file is damaged after row 192: "
    )  # of 64 at once


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_gone_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("a.parquet" if kind == "parquet" else "a.arrow")
    with pytest.raises(DataError) as caught:
        list(read(path, Options()))
    assert caught.value.what.startswith("the file cannot be read: ")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_without_pyarrow_a_table_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MachineError) as caught:
        list(read(tmp_path / name, Options()))
    assert caught.value.what.startswith("pyarrow, which reads this file, is not installed")
    assert caught.value.remedy == 'pip install "ds_llama[datasets]"'


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DatasetDict as `datasets` itself writes it, the training split in two files."""
    import datasets

    folder = tmp_path_factory.mktemp("saved") / "corpus"
    train = datasets.Dataset.from_dict({"text": [f"row {i}" for i in range(10)]})
    test = datasets.Dataset.from_dict({"text": ["held out"]})
    splits = datasets.DatasetDict({"train": train.select([3, *range(5)]), "test": test})
    splits.save_to_disk(str(folder), num_shards={"train": 2, "test": 1})
    return folder


def texts(*paths: Path, options: Options | None = None) -> list[str]:
    options = options or Options()
    return [r.text for path in find_files(paths, options) for r in read(path, options)]


def test_a_saved_dataset_gives_its_rows_and_not_its_caches(saved: Path) -> None:
    train = saved / "train"
    cache = train / "cache-1234.arrow"
    cache.write_bytes((train / "data-00000-of-00002.arrow").read_bytes())
    expected = [f"row {i}" for i in (3, 0, 1, 2, 3, 4)]
    assert texts(train) == expected
    assert texts(train, options=Options(suffixes=(".arrow",))) == expected
    assert texts(saved, options=Options(exclude=("test",))) == expected
    assert texts(saved.parent, options=Options(exclude=("test",))) == expected


def test_several_splits_are_not_mixed_in_silence(saved: Path) -> None:
    with pytest.raises(CallError) as caught:
        find_files([saved], Options())
    assert caught.value.what == "this dataset has several splits: train, test"
    assert caught.value.where == str(saved)
    assert f"name the folder of one, such as {saved / 'train'}" in caught.value.remedy
    assert "--exclude test" in caught.value.remedy


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("{broken", "it does not list the files that hold the rows"),
        ('{"_data_files": [{"filename": "gone.arrow"}]}', "it names gone.arrow, which is not"),
        ('{"_data_files": [{"filename": "../a.arrow"}]}', "it names ../a.arrow, which is not"),
        ('{"_data_files": [], "_indices_data_files": [1]}', "its rows are a selection"),
    ],
)
def test_a_broken_saved_dataset_is_named(tmp_path: Path, state: str, words: str) -> None:
    (tmp_path / "a.arrow").write_bytes(b"")
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text(state)
    with pytest.raises(DataError) as caught:
        find_files([folder], Options())
    assert f"the saved dataset is not whole: state.json: {words}" in caught.value.what
    assert caught.value.where == str(folder)
    assert "save_to_disk" in caught.value.remedy
