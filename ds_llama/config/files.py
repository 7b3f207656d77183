"""Read a JSON object from disk, with line and column in the message when that fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ds_llama.errors import CallError

MAX_BYTES = 64 * 2**20
MAX_DEPTH = 64
_JSON_NAMES = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}


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
        what, remedy = _not_json(text, error)
        where = f"{path}:{error.lineno}:{error.colno}"
        raise CallError(f"not JSON: {what}", where=where, remedy=remedy) from None
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
            f"holds {_JSON_NAMES.get(type(value), 'a number')}, not an object",
            where=str(path),
            remedy="the file must be one JSON object: { … }",
        )
    return value


def read_text(path: Path) -> str:
    """UTF-8 text of a small file; CallError when there is none."""
    try:
        with path.open("rb") as file:  # a pipe or a device has no size to ask for
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise CallError(
                f"has more than {MAX_BYTES >> 20} MiB, which a configuration file cannot have",
                where=str(path),
                remedy="name the JSON file itself",
            )
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise CallError(
            f"is not UTF-8 text (byte {error.start})",
            where=str(path),
            remedy="save it as UTF-8, or name the JSON file itself",
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        remedy = (
            "check the path; it is relative to the working directory, or to the file that names it"
        )
        if isinstance(error, IsADirectoryError):
            remedy = f"name the JSON files in it, for instance {path}/*.json"
        what = f"cannot be read: {reason.lower()}"
        raise CallError(what, where=str(path), remedy=remedy) from None


def _not_json(text: str, error: json.JSONDecodeError) -> tuple[str, str]:
    """What is wrong at the place where reading stopped, and what to do.

    DeepSpeed reads with hjson (runtime/config.py:444), which takes most of these.
    """
    before, after = text[: error.pos].rstrip(), text[error.pos :].lstrip()
    only = "DeepSpeed itself lets it pass, the Hugging Face Trainer and this package do not"
    if not text.strip():
        return "the file is empty", "write an object: { … }"
    if not after:
        return "the file ends in the middle", "write what is missing, at least the closing braces"
    if after.startswith(("//", "/*", "#")):
        return "a comment", f"remove it; {only}"
    if after.startswith("'"):
        return "a single quote", f'write double quotes: "…"; {only}'
    if (before.endswith(",") and after[:1] in ("}", "]")) or "railing comma" in error.msg:
        return "a comma before the end", f"remove it; {only}"
    if after.startswith(("True", "False", "None")):
        return f"{after.split()[0].rstrip(',}')} is Python", "write true, false or null"
    if "delimiter: ','" in error.msg or "',' delimiter" in error.msg:
        return "a comma is missing before this", "write it at the end of the line above"
    return error.msg[0].lower() + error.msg[1:], "mend the JSON at that line and column"


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
