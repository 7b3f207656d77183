"""What two resolved runs differ in, for whoever goes on with one under another configuration."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

_ABSENT = object()


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A line "key.path: old -> new" for each value that differs, in the order of the keys.

    Both are JSON objects. A value that only one of them has is "absent" in the other.
    """
    return [
        f"{path}: {_text(before)} -> {_text(after)}"
        for path, before, after in _differing("", old, new)
    ]


def _differing(path: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys((*old, *new)):
            below = f"{path}.{key}" if path else str(key)
            yield from _differing(below, old.get(key, _ABSENT), new.get(key, _ABSENT))
    elif old != new or isinstance(old, bool) != isinstance(new, bool):
        yield path, old, new


def _text(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
