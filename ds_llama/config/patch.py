"""Change one key of a JSON text and leave every other character as its author wrote it.

A path is the names from the outermost object inwards; every function gives the new text, and
KeyError when there is nothing at the path.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

_SPACE = " \t\r\n"
Path = tuple[str, ...]


class _Member(NamedTuple):
    """Positions in the text: the key with its quotes, and the value."""

    name: str
    start: int
    key_end: int
    value: int
    end: int


def locate(tree: Any, dotted: str) -> Path | None:
    """The path that a dotted key means; names may themselves hold dots."""
    if not dotted:
        return ()
    if not isinstance(tree, dict):
        return None
    if dotted in tree:
        return (dotted,)
    for name in tree:
        if dotted.startswith(f"{name}."):
            inner = locate(tree[name], dotted[len(name) + 1 :])
            if inner:
                return (name, *inner)
    return None


def remove(text: str, path: Path) -> str:
    """Without the key at `path`."""
    members, opening, closing, index = _at(text, path)
    start, end = members[index].start, members[index].end
    if index + 1 < len(members):
        end = members[index + 1].start
    elif index:
        start = members[index - 1].end
    else:
        start, end = opening + 1, closing
    return text[:start] + text[end:]


def rename(text: str, path: Path, name: str) -> str:
    """The key at `path` under another name, in its place."""
    members, _, _, index = _at(text, path)
    member = members[index]
    return text[: member.start] + _dumps(name) + text[member.key_end :]


def write(text: str, path: Path, value: Any) -> str:
    """`value` at `path`, over what stands there or after the last key of its object."""
    return _write(text, path, _dumps(value))


def move(text: str, path: Path, to: Path) -> str:
    """The value at `path`, spelled as it is, at `to`."""
    members, _, _, index = _at(text, path)
    value = text[members[index].value : members[index].end]
    return _write(remove(text, path), to, value)


def _write(text: str, path: Path, value: str) -> str:
    opening = _object(text, path[:-1])
    if opening is None:  # the object around it is missing too
        return _write(text, path[:-1], f"{{{_dumps(path[-1])}: {value}}}")
    members, closing = _members(text, opening)
    for member in members:
        if member.name == path[-1]:
            return text[: member.value] + value + text[member.end :]
    entry = f"{_dumps(path[-1])}: {value}"
    if not members:
        return text[: opening + 1] + entry + text[closing:]
    lead = text[opening + 1 : members[0].start] or " "
    return text[: members[-1].end] + f",{lead}{entry}" + text[members[-1].end :]


def _at(text: str, path: Path) -> tuple[list[_Member], int, int, int]:
    opening = _object(text, path[:-1])
    if opening is None:
        raise KeyError(path)
    members, closing = _members(text, opening)
    for index, member in enumerate(members):
        if member.name == path[-1]:
            return members, opening, closing, index
    raise KeyError(path)


def _object(text: str, path: Path) -> int | None:
    """Where the object at `path` opens; None when there is none."""
    here = _skip(text, 0)
    for name in path:
        found = [member.value for member in _members(text, here)[0] if member.name == name]
        if not found or text[found[0]] != "{":
            return None
        here = found[0]
    return here


def _members(text: str, opening: int) -> tuple[list[_Member], int]:
    """The members of the object that opens there, and where it closes."""
    found = list(_scan(text, opening + 1))
    return found, _skip(text, found[-1].end if found else opening + 1)


def _scan(text: str, here: int) -> Iterator[_Member]:
    decoder = json.JSONDecoder()
    here = _skip(text, here)
    while text[here] == '"':
        name, key_end = decoder.raw_decode(text, here)
        value = _skip(text, _skip(text, key_end) + 1)
        _, end = decoder.raw_decode(text, value)
        yield _Member(name, here, key_end, value, end)
        here = _skip(text, end)
        if text[here] == ",":
            here = _skip(text, here + 1)


def _skip(text: str, here: int) -> int:
    while text[here] in _SPACE:
        here += 1
    return here


def _dumps(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value)  # lone surrogates cannot be written
