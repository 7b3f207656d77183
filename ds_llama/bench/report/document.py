"""A report as blocks of plain text, which know nothing of how they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ds_llama.bench.report.drawing import Picture


@dataclass(frozen=True)
class Heading:
    """`level` 2 is a section, 3 a part of one."""

    text: str
    level: int = 2
    anchor: str = ""


@dataclass(frozen=True)
class Text:
    """A paragraph. `kind`: "advice" is what the reader came for, "note" is small print."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Items:
    """A list; `term` stands out before its text."""

    items: tuple[tuple[str, str], ...]


class Beyond(str):
    """A value of a table that is beyond a limit."""


@dataclass(frozen=True)
class Table:
    """Text to the left in the first `left` columns, numbers to the right in the others.

    `marked` rows are the recommended ones. `links`: an anchor for each row, or nothing.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1
    marked: frozenset[int] = frozenset()
    links: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pictures:
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Folded:
    """Blocks that are shown when they are asked for."""

    summary: str
    blocks: tuple[Block, ...]


Block = Heading | Text | Items | Table | Pictures | Folded


@dataclass(frozen=True)
class Document:
    title: str
    blocks: tuple[Block, ...]

    @property
    def pictures(self) -> list[Picture]:
        return [p for block in self.blocks if isinstance(block, Pictures) for p in block.pictures]


def without_empty_columns(table: Table, nothing: Sequence[str] = ("",)) -> Table:
    """The table without columns whose every value is one of `nothing`; the first `left` stay."""
    kept = [
        index
        for index in range(len(table.head))
        if index < table.left or any(row[index] not in nothing for row in table.rows)
    ]
    rows = tuple(tuple(row[index] for index in kept) for row in table.rows)
    return replace(table, head=tuple(table.head[index] for index in kept), rows=rows)
