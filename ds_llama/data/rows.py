"""Questions with known answers, for training and for `ds-llama eval` alike.

    {"prompt": "…", "choices": ["…", "…"], "answer": 1}            index or text of the right one
    {"prompt": "…", "answer": "…"}                                 or a list: any of them is right

Other keys of a row are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ds_llama.data.tokenizer import Tokenizer
from ds_llama.errors import DataError

FORMS = (
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


Pair = tuple[list[int], list[int]]


def row_of(record: Mapping[str, Any], path: str, line: int) -> Row:
    """Raises DataError, with path and line, for a record that is not as above."""
    return _Record(path, line, record).row()


def encode_pair(coder: Tokenizer, row: Row, answer: str, *, bos: bool = True) -> Pair:
    """(context, continuation): BOS, if there is one, and the prompt, then the answer after a space.

    No space is put between them where the prompt ends with white space or the answer begins with
    some. Both are tokenized together, as lm-eval's `_encode_pair` does, white space at the end of
    the prompt with the answer: a prompt's last piece and its space would else be cut as no text in
    training was.
    """
    bare = row.prompt.rstrip()
    space = "" if bare != row.prompt or answer[:1].isspace() else " "
    whole = encode_prompt(coder, f"{row.prompt}{space}{answer}", bos=bos)
    # where the answer has melted into the prompt's last piece, that piece is the answer's
    context = min(len(encode_prompt(coder, bare, bos=bos)), len(whole) - 1)
    return whole[:context], whole[context:]


def encode_prompt(coder: Tokenizer, text: str, *, bos: bool = True) -> list[int]:
    """The ids of a text behind the BOS token, if there is one."""
    return coder.encode(text, bos=bos and coder.bos_id is not None)


class _Record:
    """One record on its way to a Row; every mistake is said with its place."""

    def __init__(self, path: str, line: int, record: Mapping[str, Any]) -> None:
        self.path, self.line, self.record = path, line, record

    def row(self) -> Row:
        row = self.record
        for key in ("prompt", "answer"):
            if key not in row:
                raise self._wrong(f"the row has no {key!r}")
        prompt = self._text(row["prompt"], "prompt")
        if not prompt:
            raise self._wrong("'prompt' is empty")
        if row.get("choices") is None:
            return Row(self.path, self.line, prompt, (), self._free(row["answer"]))
        choices = self._choices(row["choices"])
        answer = self._chosen(row["answer"], choices)
        return Row(self.path, self.line, prompt, choices, (answer,))

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

    def _wrong(self, what: str, remedy: str = FORMS) -> DataError:
        return DataError(what, where=f"{self.path}:{self.line}", remedy=remedy)
