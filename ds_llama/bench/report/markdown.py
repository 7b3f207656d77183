"""A document as Markdown that GitHub renders; plots are the PNG files beside it."""

from __future__ import annotations

import re

from ds_llama.bench.report.document import (
    Beyond,
    Block,
    Document,
    Folded,
    Heading,
    Items,
    Pictures,
    Table,
    Text,
)

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~$&])")


def text(document: Document) -> str:
    """The whole file's text."""
    blocks = [f"# {escape(document.title)}", *(_block(block) for block in document.blocks)]
    return "\n\n".join(blocks) + "\n"


def escape(words: str) -> str:
    """So that every character is itself."""
    return _SPECIAL.sub(r"\\\1", " ".join(words.split()))


def _block(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {escape(block.text)}"
    if isinstance(block, Text):
        words = escape(block.text)
        return f"> **{words}**" if block.kind == "advice" else words
    if isinstance(block, Items):
        return "\n".join(f"- **{escape(term)}**: {escape(words)}" for term, words in block.items)
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Pictures):
        return "\n\n".join(_picture(p.name, p.title, p.alt, p.note) for p in block.pictures)
    return _folded(block)


def _picture(name: str, title: str, alt: str, note: str) -> str:
    caption = f"**{escape(title)}.** {escape(note)}".rstrip()
    return f"{caption}\n\n![{escape(alt)}]({name}.png)"


def _folded(block: Folded) -> str:
    inner = "\n\n".join(_block(each) for each in block.blocks)
    summary = block.summary.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"<details><summary>{summary}</summary>\n\n{inner}\n\n</details>"


def _table(table: Table) -> str:
    rule = ["---" if index < table.left else "---:" for index in range(len(table.head))]
    lines = [[escape(each) for each in table.head], rule]
    for number, row in enumerate(table.rows):
        values = [_value(value) for value in row]
        if number in table.marked:
            values[0] = f"**{values[0]}**"
        lines.append(values)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _value(value: str) -> str:
    return f"**{escape(value)}**" if isinstance(value, Beyond) else escape(value)
