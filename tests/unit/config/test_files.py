from __future__ import annotations

import pytest

from ds_llama.config.files import read_object
from ds_llama.errors import CallError


@pytest.fixture
def file(tmp_path):
    return tmp_path / "run.json"


def refusal(file, content):
    file.write_bytes(content)
    with pytest.raises(CallError) as caught:
        read_object(file)
    assert caught.value.exit_code == 2
    return caught.value


def test_an_object_is_read_with_or_without_a_byte_order_mark(file):
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_object(file) == {"a": 1}


def test_a_syntax_error_has_line_and_column(file):
    error = refusal(file, b'{\n  "a": 1,\n}')
    assert error.where == f"{file}:2:9" or error.where == f"{file}:3:1"
    assert error.what.startswith("not JSON: ")


def test_a_repeated_key_is_named_with_its_line(file):
    error = refusal(file, b'{\n  "steps": 1,\n  "seed": 2,\n  "steps": 3\n}')
    assert error.what == "the key 'steps' stands twice in one object"
    assert error.where == f"{file}:4"


def test_one_name_in_two_objects_is_no_repetition(file):
    file.write_text('{"a": {"x": 1}, "b": {"x": 2}}')
    assert read_object(file) == {"a": {"x": 1}, "b": {"x": 2}}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"[1]", "holds a list, not an object"),
        (b"null", "holds null, not an object"),
        (b"2.5", "holds a number, not an object"),
        (b"", "not JSON: the file is empty"),
        (b"\n \t", "not JSON: the file is empty"),
        (b'{"a": 1', "not JSON: the file ends in the middle"),
        (b'{"a": 1 // one\n}', "not JSON: a comment"),
        (b'# mine\n{"a": 1}', "not JSON: a comment"),
        (b'{"a": 1,}', "not JSON: a comma before the end"),
        (b"{'a': 1}", "not JSON: a single quote"),
        (b'{"a": True}', "not JSON: True is Python"),
        (b'{"a": 1\n"b": 2}', "not JSON: a comma is missing before this"),
        (b'{"a": 1}\x00', "not JSON: extra data"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "not JSON"),
        (b'{"a": "\xff"}', "is not UTF-8 text (byte 7)"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "is nested more than 64 levels deep"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_what_is_not_an_object(file, content, what):
    assert what in refusal(file, content).what


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(CallError, match="no such file"):
        read_object(tmp_path / "none.json")
    with pytest.raises(CallError, match="is a directory"):
        read_object(tmp_path)
