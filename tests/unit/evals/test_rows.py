from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ds_llama.errors import CallError, DataError
from ds_llama.evals.rows import read_rows

CHOICES = {"prompt": "q", "choices": ["no", "yes"], "answer": 1}
FREE = {"prompt": "q", "answer": "yes"}


def _file(folder: Path, *lines: Any) -> Path:
    path = folder / "rows.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts), encoding="utf-8")
    return path


def test_choices_are_answered_by_index_or_text(tmp_path: Path) -> None:
    path = _file(tmp_path, CHOICES, "", CHOICES | {"answer": "no", "id": 7})
    first, second = read_rows(path)
    assert (first.line, first.prompt, first.choices) == (1, "q", ("no", "yes"))
    assert (first.answers, first.gold, first.where) == (("yes",), 1, f"{path}:1")
    assert (second.line, second.answers, second.gold) == (3, ("no",), 0)


def test_free_answers_are_one_or_several(tmp_path: Path) -> None:
    rows = read_rows(_file(tmp_path, FREE, FREE | {"answer": ["oui", "ja"], "choices": None}))
    assert [row.answers for row in rows] == [("yes",), ("oui", "ja")]
    assert [row.choices for row in rows] == [(), ()]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"prompt": ', "the line is not JSON (Expecting value"),
        ("[1]", "the line is no JSON object but list"),
        ({"answer": "a"}, "the row has no 'prompt'"),
        ({"prompt": "q"}, "the row has no 'answer'"),
        (FREE | {"prompt": 3}, "'prompt' is not text but int"),
        (FREE | {"prompt": ""}, "'prompt' is empty"),
        (FREE | {"prompt": "\ud800"}, "'prompt' holds half a character (surrogates not allowed)"),
        (FREE | {"answer": 3}, "'answer' is not text but int"),
        (FREE | {"answer": []}, "'answer' is an empty list"),
        (FREE | {"answer": ["a", None]}, "'answer' is not text but NoneType"),
        (CHOICES | {"choices": "yes"}, "'choices' is no list but str"),
        (CHOICES | {"choices": ["yes"]}, "'choices' has 1 of at least 2 entries"),
        (CHOICES | {"choices": []}, "'choices' has 0 of at least 2 entries"),
        (CHOICES | {"choices": ["a", 1]}, "'choices' is not text but int"),
        (CHOICES | {"choices": ["a", " "]}, "a choice is empty"),
        (CHOICES | {"choices": ["a", "a"]}, "the choice 'a' is there more than once"),
        (CHOICES | {"answer": 2}, "'answer' is 2, of 2 choices"),
        (CHOICES | {"answer": -1}, "'answer' is -1, of 2 choices"),
        (CHOICES | {"answer": True}, "'answer' is not text but bool"),
        (CHOICES | {"answer": "maybe"}, "the answer 'maybe' is not among the choices"),
        (FREE, "this row has no choices, and the first one has choices"),
    ],
    ids=str,
)
def test_a_broken_row_is_said_with_its_line(tmp_path: Path, line: Any, what: str) -> None:
    path = _file(tmp_path, CHOICES, line)
    with pytest.raises(DataError) as caught:
        read_rows(path)
    assert caught.value.what.startswith(what)
    assert caught.value.where == f"{path}:2"


def test_kinds_are_not_mixed_the_other_way_round(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="this row has choices, and the first one has no choices"):
        read_rows(_file(tmp_path, FREE, CHOICES))


def test_remedies_name_what_would_be_right(tmp_path: Path) -> None:
    for answer, remedy in (
        ("maybe", "give one of 'no', 'yes', or the index of one"),
        (2, "give an index from 0 to 1, or the choice's text"),
    ):
        with pytest.raises(DataError) as caught:
            read_rows(_file(tmp_path, CHOICES | {"answer": answer}))
        assert caught.value.remedy == remedy


def test_no_rows_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(CallError, match="there is no such file"):
        read_rows(tmp_path / "none.jsonl")
    for text in ("", "\n \n"):
        with pytest.raises(DataError, match="the file is empty"):
            read_rows(_file(tmp_path, text))


def test_an_editors_mark_before_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a", "answer": "b"}\r\n')
    assert [row.prompt for row in read_rows(path)] == ["a"]


def test_a_line_that_is_no_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(FREE).encode() + b'\n{"prompt": "\xff", "answer": "a"}\n')
    with pytest.raises(DataError, match="the line is not JSON") as caught:
        read_rows(path)
    assert caught.value.where == f"{path}:2"
