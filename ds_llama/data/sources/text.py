"""Plain text: a file is one document, or each line, or each paragraph (between blank lines).

Bytes that are not UTF-8 become U+FFFD.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ds_llama.data.sources.opened import LONGEST_BYTES, Line, opened, read_lines
from ds_llama.data.sources.record import Options, Record
from ds_llama.units import format_bytes

SUFFIXES = (".txt", ".text", ".md", ".rst", ".txt.gz", ".txt.zst")
_PART_BYTES = 1 << 20


def read(path: Path, options: Options) -> Iterator[Record]:
    if options.documents == "file":
        yield _whole(path)
    elif options.documents == "line":
        yield from (_joined([line], path) for line in read_lines(path) if not _is_blank(line))
    else:
        yield from _paragraphs(path)


def _whole(path: Path) -> Record:
    parts, held_bytes = [], 0
    with opened(path) as file:
        while held_bytes <= LONGEST_BYTES and (part := file.stream.read(_PART_BYTES)):
            parts.append(part)
            held_bytes += len(part)
        position = file.raw.tell()
    if held_bytes <= LONGEST_BYTES:
        return Record(b"".join(parts).decode("utf-8", errors="replace"), str(path), position)
    problem = f"a document of more than {format_bytes(LONGEST_BYTES)}"
    remedy = "--documents line or paragraph cuts a file into several"
    return Record("", str(path), position, f"{problem}; {remedy}")


def _paragraphs(path: Path) -> Iterator[Record]:
    lines: list[Line] = []
    held_bytes = 0
    for line in read_lines(path):
        if not _is_blank(line):
            held_bytes += LONGEST_BYTES + 1 if line.content is None else len(line.content)
            # Of one that is too long the first line is kept, to say where it is.
            if held_bytes > LONGEST_BYTES:
                lines = [Line(None, (lines or [line])[0].number, line.position)]
            else:
                lines.append(line)
        elif lines:
            yield _joined(lines, path)
            lines, held_bytes = [], 0
    if lines:
        yield _joined(lines, path)


def _joined(lines: list[Line], path: Path) -> Record:
    """A document without the end of its last line."""
    where, position = f"{path}:{lines[0].number}", lines[-1].position
    contents = [line.content for line in lines if line.content is not None]
    if not contents:
        problem = f"a document of more than {format_bytes(LONGEST_BYTES)}"
        return Record("", where, position, problem)
    text = b"".join(contents).decode("utf-8", errors="replace")
    return Record(text.rstrip("\r\n"), where, position)


def _is_blank(line: Line) -> bool:
    return line.content is not None and not line.content.strip()
