"""Read a JSON object from disk, with line and column in the message when that fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ds_llama.errors import CallError

MAX_BYTES = 64 * 2**20
MAX_DEPTH = 64


class _Duplicate(ValueError):
    pass


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. A byte order mark is let through, a key that stands twice is not.

    Raises CallError (exit 2): missing, unreadable, not UTF-8, not JSON, or not an object.
    """
    return to_object(read_text(path), path)


def to_object(text: str, path: Path) -> dict[str, Any]:
    """`read_object` for the text of a file; `path` is what messages call it."""
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}:{error.colno}"
        raise CallError(
            f"not JSON: {error.msg[0].lower()}{error.msg[1:]}",
            where=where,
            remedy="mend the JSON at that line and column; it has no comments or trailing commas",
        ) from None
    except _Duplicate as error:
        name = str(error)
        line = _second_line(text, name)
        raise CallError(
            f"the key {name!r} stands twice in one object",
            where=f"{path}:{line}" if line else str(path),
            remedy="keep one of them: JSON readers silently take the last",
        ) from None
    except (ValueError, RecursionError) as error:
        raise CallError(f"not JSON: {error}", where=str(path), remedy="mend the file") from None
    if _depth(value) > MAX_DEPTH:
        raise CallError(
            f"is nested more than {MAX_DEPTH} levels deep",
            where=str(path),
            remedy="name the JSON file itself",
        )
    if not isinstance(value, dict):
        raise CallError(
            f"holds a JSON {type(value).__name__}, not an object",
            where=str(path),
            remedy="the file must be one JSON object: { … }",
        )
    return value


def read_text(path: Path) -> str:
    """UTF-8 text of a small file; CallError when there is none."""
    try:
        if path.is_file() and path.stat().st_size > MAX_BYTES:
            raise CallError(
                f"has {path.stat().st_size} bytes, more than a configuration file can have",
                where=str(path),
                remedy="name the JSON file itself",
            )
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CallError(
            f"is not UTF-8 text (byte {error.start})",
            where=str(path),
            remedy="save it as UTF-8, or name the JSON file itself",
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CallError(
            f"cannot be read: {reason.lower()}",
            where=str(path),
            remedy="check the path; it is relative to the working directory, or to the file that "
            "names it",
        ) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise _Duplicate(name)
        result[name] = value
    return result


def _depth(value: Any) -> int:
    """Levels of objects and lists, found without recursion."""
    depth, level = 0, [value]
    while level:
        inside = [inner for inner in level if isinstance(inner, (dict, list))]
        level = [
            child
            for inner in inside
            for child in (inner.values() if isinstance(inner, dict) else inner)
        ]
        depth += bool(inside)
    return depth


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _second_line(text: str, name: str) -> int | None:
    """Line of the second mention of `name` as a key; the first two may be in other objects."""
    quoted = json.dumps(name, ensure_ascii=False)
    lines = [
        number
        for number, line in enumerate(text.splitlines(), start=1)
        for _ in range(line.count(quoted))
    ]
    return lines[1] if len(lines) == 2 else None
