"""Questions with known answers, one a line of a JSONL file.

    {"prompt": "…", "choices": ["…", "…"], "answer": 1}            index or text of the right one
    {"prompt": "…", "answer": "…"}                                 or a list: any of them is right

Other keys of a row are not read. All rows of a file are of one kind.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_llama.errors import DataError
from ds_llama.evals.windows import read_bytes

_FORMS = (
    'write {"prompt": "…", "choices": ["…", "…"], "answer": 0} or {"prompt": "…", "answer": "…"}'
)


@dataclass(frozen=True)
class Row:
    """`choices` is empty where the answer is free text. `answers`: each of them is right."""

    path: str
    line: int
    prompt: str
    choices: tuple[str, ...]
    answers: tuple[str, ...]

    @property
    def where(self) -> str:
        return f"{self.path}:{self.line}"

    @property
    def gold(self) -> int:
        """Index of the right choice."""
        return self.choices.index(self.answers[0])


def read_rows(path: str | Path) -> list[Row]:
    """Every row of a file; blank lines are passed over.

    Raises CallError when there is no file, DataError, with the line, for what is not as above.
    """
    lines = read_bytes(Path(path)).split(b"\n")
    rows = [
        _Line(str(path), number, raw).row() for number, raw in enumerate(lines, 1) if raw.strip()
    ]
    for row in rows:
        if bool(row.choices) != bool(rows[0].choices):
            has, others = ("", "no ") if row.choices else ("no ", "")
            raise DataError(
                f"this row has {has}choices, and the first one has {others}choices",
                where=row.where,
                remedy="put rows with choices and rows with free answers into files of their own",
            )
    return rows


class _Line:
    """One line on its way to a Row; every mistake is said with its place."""

    def __init__(self, path: str, number: int, raw: bytes) -> None:
        self.path, self.number, self.raw = path, number, raw

    def row(self) -> Row:
        row = self._object()
        for key in ("prompt", "answer"):
            if key not in row:
                raise self._wrong(f"the row has no {key!r}")
        prompt = self._text(row["prompt"], "prompt")
        if not prompt:
            raise self._wrong("'prompt' is empty")
        if row.get("choices") is None:
            return Row(self.path, self.number, prompt, (), self._free(row["answer"]))
        choices = self._choices(row["choices"])
        answer = self._chosen(row["answer"], choices)
        return Row(self.path, self.number, prompt, choices, (answer,))

    def _object(self) -> dict[str, Any]:
        try:
            found = json.loads(self.raw.decode())
        except (ValueError, RecursionError) as error:
            raise self._wrong(f"the line is not JSON ({error})") from error
        if not isinstance(found, dict):
            raise self._wrong(f"the line is no JSON object but {type(found).__name__}")
        return found

    def _choices(self, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise self._wrong(f"'choices' is no list but {type(value).__name__}")
        choices = tuple(self._text(choice, "choices") for choice in value)
        if len(choices) < 2:
            raise self._wrong(f"'choices' has {len(choices)} of at least 2 entries")
        if not all(choice.strip() for choice in choices):
            raise self._wrong("a choice is empty")
        twice = [choice for choice in choices if choices.count(choice) > 1]
        if twice:
            raise self._wrong(f"the choice {twice[0]!r} is there more than once")
        return choices

    def _chosen(self, value: Any, choices: tuple[str, ...]) -> str:
        if isinstance(value, int) and not isinstance(value, bool):
            if not 0 <= value < len(choices):
                remedy = f"give an index from 0 to {len(choices) - 1}, or the choice's text"
                raise self._wrong(f"'answer' is {value}, of {len(choices)} choices", remedy)
            return choices[value]
        answer = self._text(value, "answer")
        if answer not in choices:
            listed = ", ".join(repr(choice) for choice in choices[:8])
            remedy = f"give one of {listed}, or the index of one"
            raise self._wrong(f"the answer {answer!r} is not among the choices", remedy)
        return answer

    def _free(self, value: Any) -> tuple[str, ...]:
        if isinstance(value, list):
            if not value:
                raise self._wrong("'answer' is an empty list")
            return tuple(self._text(answer, "answer") for answer in value)
        return (self._text(value, "answer"),)

    def _text(self, value: Any, key: str) -> str:
        if not isinstance(value, str):
            raise self._wrong(f"{key!r} is not text but {type(value).__name__}")
        try:
            value.encode()
        except UnicodeEncodeError as error:  # JSON may escape half a surrogate pair
            raise self._wrong(f"{key!r} holds half a character ({error.reason})") from error
        return value

    def _wrong(self, what: str, remedy: str = _FORMS) -> DataError:
        return DataError(what, where=f"{self.path}:{self.number}", remedy=remedy)
