"""What a source yields, and what a user may ask of every source."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """`suffixes` and `exclude` (names or globs, of files and folders) choose files in folders;
    `text_field` is the key of a JSON record that holds the text."""

    suffixes: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    text_field: str = "text"


@dataclass(frozen=True)
class Record:
    """One document, or one that could not be read: then `problem` says why and `text` is empty.

    `where` is `file` or `file:line`; `position` the bytes of the file consumed so far.
    """

    text: str
    where: str
    position: int
    problem: str | None = None
