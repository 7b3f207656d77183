"""What a source yields, and what a user may ask of every source."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Documents = Literal["file", "line", "paragraph"]
# JSON may escape half a surrogate pair, which no encoder accepts.
_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Options:
    """`suffixes` and `exclude` (names or globs, of files and folders) choose files in folders;
    `text_field` is the key or column that holds the text; `documents` says what of a plain text is
    one. With `objects` a record is the whole JSON object or row, whatever fields it has."""

    suffixes: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    text_field: str = "text"
    documents: Documents = "file"
    objects: bool = False

    def asked(self) -> dict[str, Any]:
        """All that changes what a file's records are, for a fingerprint."""
        return {
            "text_field": self.text_field,
            "documents": self.documents,
            "objects": self.objects,
        }


class Record(NamedTuple):
    """One document, or one that could not be read: then `problem` says why and `text` is empty.

    `where` is `file`, `file:line` or `file:row`, both from 1; `position` the bytes of the file
    consumed so far. With `Options.objects`, `value` is the object and `text` that object as JSON,
    its keys in their order, which a chat template may show. A problem is counted by its first
    words, up to a colon or semicolon; `raw` is what the file says there, cut off.
    """

    text: str
    where: str
    position: int
    problem: str | None = None
    value: dict[str, Any] | None = None
    raw: str = ""


def record_of(value: object, where: str, position: int, options: Options) -> Record:
    """The record of a parsed JSON value or a row."""
    if not isinstance(value, dict):
        kind = type(value).__name__
        return Record("", where, position, f"not a JSON object but {kind}")
    if options.objects:
        return _object(value, where, position)
    field = options.text_field
    if field not in value:
        there = ", ".join(sorted(value)[:8]) or "none"
        return Record("", where, position, f'no field "{field}"; it has {there}')
    text = value[field]
    if not isinstance(text, str):
        kind = type(text).__name__
        return Record("", where, position, f'field "{field}" is not a string but {kind}')
    return Record(_encodable(text), where, position)


def _encodable(text: str) -> str:
    try:
        text.encode()  # many times faster than to search
    except UnicodeEncodeError:
        return _SURROGATES.sub("\ufffd", text)
    return text


def _object(value: dict[str, Any], where: str, position: int) -> Record:
    # Rows of a table may hold dates, decimals and bytes.
    text = json.dumps(value, ensure_ascii=False, default=str)
    if _SURROGATES.search(text):
        text = _SURROGATES.sub("\ufffd", text)
        value = json.loads(text)
    return Record(text, where, position, value=value)
