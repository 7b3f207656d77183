"""A document as one HTML file: no script, no network, light or dark as the reader's system is."""

from __future__ import annotations

from html import escape
from pathlib import Path
from string import Template

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
from ds_llama.bench.report.drawing import Picture

_PAGE = Path(__file__).with_name("page.html")


def page(document: Document) -> str:
    """The whole file's text."""
    return Template(_PAGE.read_text(encoding="utf-8")).substitute(
        title=escape(document.title),
        body="\n".join(_block(block) for block in document.blocks),
    )


def _block(block: Block) -> str:
    if isinstance(block, Heading):
        anchor = f' id="{escape(block.anchor)}"' if block.anchor else ""
        return f"<h{block.level}{anchor}>{escape(block.text)}</h{block.level}>"
    if isinstance(block, Text):
        kind = f' class="{block.kind}"' if block.kind else ""
        return f"<p{kind}>{escape(block.text)}</p>"
    if isinstance(block, Items):
        items = (f"<dt>{escape(t)}</dt><dd>{escape(text)}</dd>" for t, text in block.items)
        return f"<dl>{''.join(items)}</dl>"
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Pictures):
        return f'<div class="plots">{"".join(map(_figure, block.pictures))}</div>'
    return _folded(block)


def _folded(block: Folded) -> str:
    inner = "".join(_block(each) for each in block.blocks)
    return f"<details><summary>{escape(block.summary)}</summary>{inner}</details>"


def _figure(picture: Picture) -> str:
    note = f"<small>{escape(picture.note)}</small>" if picture.note else ""
    caption = f"<figcaption><b>{escape(picture.title)}</b>{note}</figcaption>"
    return f"<figure>{caption}{picture.svg}</figure>"


def _table(table: Table) -> str:
    head = "".join(
        f"<th{_side(table, index)}>{escape(each)}</th>" for index, each in enumerate(table.head)
    )
    rows = "".join(_row(table, number) for number in range(len(table.rows)))
    body = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="wide" tabindex="0">{body}</div>'


def _row(table: Table, number: int) -> str:
    values = []
    for index, value in enumerate(table.rows[number]):
        shown = escape(value)
        if table.links and not index:
            shown = f'<a href="#{escape(table.links[number])}">{shown}</a>'
        tag, kind = "td" if index else "th", _side(table, index, value)
        scope = "" if index else ' scope="row"'
        values.append(f"<{tag}{scope}{kind}>{shown}</{tag}>")
    kind = ' class="take"' if number in table.marked else ""
    return f"<tr{kind}>{''.join(values)}</tr>"


def _side(table: Table, index: int, value: str = "") -> str:
    kinds = ["text"] if index < table.left else []
    kinds += ["beyond"] if isinstance(value, Beyond) else []
    return f' class="{" ".join(kinds)}"' if kinds else ""
