from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path

import pytest
import zstandard

from ds_llama.data import sources
from ds_llama.data.sources import Options, find_files, jsonl, opened, read, text
from ds_llama.data.sources.record import Documents
from ds_llama.errors import CallError, DataError, MachineError


def make(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def packed(raw: bytes, name: str) -> bytes:
    """As a file of this name holds it; zstd in two frames, as `cat a.zst b.zst` leaves them."""
    if name.endswith(".gz"):
        return gzip.compress(raw)
    if name.endswith(".zst"):
        half, compress = len(raw) // 2, zstandard.ZstdCompressor().compress
        return compress(raw[:half]) + compress(raw[half:])
    return raw


def found(root: Path, options: Options | None = None) -> list[str]:
    return [p.relative_to(root).as_posix() for p in find_files([root], options or Options())]


def test_every_source_is_found_and_claims_its_suffixes() -> None:
    assert set(sources.sources()) == {"text", "jsonl", "parquet", "arrow"}
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


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.ndjson.zst"])
def test_json_lines_plain_gzip_and_zstd(tmp_path: Path, name: str) -> None:
    raw = "\n".join(LINES).encode()
    (tmp_path / name).write_bytes(packed(raw, name))
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


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_a_cut_off_file_is_named(tmp_path: Path, kind: str) -> None:
    raw = b'{"text": "first"}\n' + os.urandom(100_000).hex().encode() * 3
    path = tmp_path / {"gzip": "a.jsonl.gz", "zstd": "a.jsonl.zst"}[kind]
    path.write_bytes(packed(raw, path.name)[:-200])
    with pytest.raises(DataError) as caught:
        list(read(path, Options()))
    assert f"the {kind} file is damaged after line 1: " in caught.value.what
    assert caught.value.where == str(path)
    assert f"{kind} -t" in caught.value.remedy


@pytest.mark.parametrize("place", [0, 3000])
def test_a_zstd_file_with_other_bytes_in_it_is_named(tmp_path: Path, place: int) -> None:
    path = tmp_path / "a.txt.zst"
    content = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(os.urandom(9000)))
    content[place] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read(path, Options()))
    assert caught.value.what.startswith("the zstd file is damaged after line 0: ")


def test_without_zstandard_a_file_of_its_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MachineError) as caught:
        list(read(tmp_path / "a.jsonl.zst", Options()))
    assert caught.value.what == "zstandard, which reads this file, is not installed"
    assert caught.value.where == str(tmp_path / "a.jsonl.zst")
    assert 'pip install "ds_llama[datasets]"' in caught.value.remedy


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst"])
def test_lines_and_paragraphs_are_documents_when_they_are_asked_for(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(packed(b"\n \none\ntwo \xff\r\n\n\t\nthree\n\n", name))

    def documents(kind: Documents) -> list[tuple[str, str]]:
        records = read(path, Options(documents=kind))
        return [(r.text, r.where.removeprefix(str(path))) for r in records]

    assert documents("line") == [("one", ":3"), ("two \ufffd", ":4"), ("three", ":7")]
    assert documents("paragraph") == [("one\ntwo \ufffd", ":3"), ("three", ":7")]
    assert documents("file") == [("\n \none\ntwo \ufffd\r\n\n\t\nthree\n\n", "")]


def test_what_is_too_long_to_be_held_is_a_problem_of_one_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (opened, text, jsonl):
        monkeypatch.setattr(module, "LONGEST_BYTES", 20)
    path = tmp_path / "a.txt"
    path.write_text("short\n" + "x" * 20 + "\n" + "y" * 90_000 + "\n\nlast\n")

    def problems(kind: Documents) -> list[tuple[str, str | None]]:
        records = read(path, Options(documents=kind))
        return [(r.text or r.where.removeprefix(str(path)), r.problem) for r in records]

    long = "a document of more than 20 B"
    assert problems("line") == [("short", None), ("x" * 20, None), (":3", long), ("last", None)]
    assert problems("paragraph") == [(":1", long), ("last", None)]
    hint = f"{long}; --documents line or paragraph cuts a file into several"
    assert problems("file") == [("", hint)]
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"text": "aaaaaaaaaaaaaaaaaa"}\n{"text": "b"}')
    records = list(read(lines, Options()))
    assert [r.text for r in records] == ["", "b"]
    assert records[0].problem == "the line is longer than 20 B"


def test_a_record_may_be_the_whole_object(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"b": [{"c": "half \\ud83d"}], "a": 1}\n[1]\n{"b":[{"c":"half \ufffd"}],"a":1}'
    )
    first, second, third = read(path, Options(objects=True))
    assert first.value == third.value == {"a": 1, "b": [{"c": "half \ufffd"}]}
    assert first.text == third.text == '{"b": [{"c": "half \ufffd"}], "a": 1}'
    assert second.problem == "not a JSON object but list"


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
