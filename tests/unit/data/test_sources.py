from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from ds_llama.data import sources
from ds_llama.data.sources import Options, find_files, read
from ds_llama.errors import CallError, DataError


def make(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def found(root: Path, options: Options | None = None) -> list[str]:
    return [p.relative_to(root).as_posix() for p in find_files([root], options or Options())]


def test_every_source_is_found_and_claims_its_suffixes() -> None:
    assert set(sources.sources()) == {"text", "jsonl"}
    claimed = [suffix for source in sources.sources().values() for suffix in source.SUFFIXES]
    assert len(claimed) == len(set(claimed))


def test_folders_are_walked_in_sorted_order(tmp_path: Path) -> None:
    make(tmp_path, "b.txt", "a/z.md", "a/a.jsonl.gz", "a.txt", "c.py", ".git/x.txt", "a/.y.txt")
    assert found(tmp_path) == ["a.txt", "a/a.jsonl.gz", "a/z.md", "b.txt"]


def test_suffixes_and_excludes_choose(tmp_path: Path) -> None:
    make(
        tmp_path, "a.py", "A.PY", "test/b.py", "lib/test/c.py", "lib/d.py", "lib/test_e.py", "f.txt"
    )
    options = Options(suffixes=(".py",), exclude=("test", "test_*"))
    assert found(tmp_path, options) == ["A.PY", "a.py", "lib/d.py"]


def test_a_named_file_needs_no_suffix_and_order_is_as_given(tmp_path: Path) -> None:
    make(tmp_path, "b.log", "a.log")
    paths = [tmp_path / "b.log", tmp_path / "a.log"]
    assert find_files(paths, Options()) == paths


def test_missing_path_is_a_wrong_call(tmp_path: Path) -> None:
    with pytest.raises(CallError) as caught:
        find_files([tmp_path / "no"], Options())
    assert caught.value.what == f"there is no file or folder {tmp_path / 'no'}"


def test_a_folder_without_text_says_how_to_choose(tmp_path: Path) -> None:
    make(tmp_path, "a.py")
    with pytest.raises(DataError) as caught:
        find_files([tmp_path], Options())
    assert "no file ends in" in caught.value.what
    assert ".jsonl" in caught.value.what
    assert "--suffix .py" in caught.value.remedy


def test_text_is_one_document_with_broken_bytes_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo \xff\xc3\r\n")
    [record] = read(path, Options())
    assert (record.text, record.where, record.position) == (
        "one\ntwo \ufffd\ufffd\r\n",
        str(path),
        12,
    )


LINES = [
    json.dumps({"text": "first ünï"}),
    "",
    json.dumps({"text": "second\nline", "id": 2}),
    "{broken",
    "[1]",
    json.dumps({"body": 1, "id": 2}),
    json.dumps({"text": 5}),
    '{"text": "half \\ud83d pair"}',
    "[" * 100_000,
    json.dumps({"text": ""}),
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_json_lines_plain_and_gzip(tmp_path: Path, name: str) -> None:
    raw = "\n".join(LINES).encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    records = list(read(tmp_path / name, Options()))
    good = [(r.text, r.where.rpartition(":")[2]) for r in records if r.problem is None]
    assert good == [
        ("first ünï", "1"),
        ("second\nline", "3"),
        ("half \ufffd pair", "8"),
        ("", "10"),
    ]
    bad = {r.where.rpartition(":")[2]: r.problem or "" for r in records if r.problem}
    assert list(bad) == ["4", "5", "6", "7", "9"]
    assert bad["4"].startswith("not JSON: Expecting property name")
    assert bad["5"] == "not a JSON object but list"
    assert bad["6"] == 'no field "text"; it has body, id'
    assert bad["7"] == 'field "text" is not a string but int'
    assert records[-1].position == (tmp_path / name).stat().st_size
    assert [r.position for r in records] == sorted(r.position for r in records)


def test_another_field_holds_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"content": "x"}\n')
    [record] = read(tmp_path / "a.jsonl", Options(text_field="content"))
    assert record.text == "x"


def test_a_cut_off_gzip_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(os.urandom(1000).hex().encode() * 50)[:-200])
    with pytest.raises(DataError) as caught:
        list(read(path, Options()))
    assert "the gzip file is damaged after line 0" in caught.value.what
    assert caught.value.where == str(path)
    assert "gzip -t" in caught.value.remedy


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        list(read(tmp_path / "gone.txt", Options()))
    assert caught.value.what == "the file cannot be read: No such file or directory"
    assert caught.value.where == str(tmp_path / "gone.txt")


def test_json_lines_are_streamed(tmp_path: Path) -> None:
    """The first record comes without the rest being read."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "x"}\n' * 200_000)
    record = next(iter(read(path, Options())))
    assert record.position < path.stat().st_size / 2
