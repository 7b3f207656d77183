"""What two resolved runs differ in, for whoever goes on with one under another configuration."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

WIDTH = 78
_ABSENT = object()
# Said by the resolved DeepSpeed JSON as well.
_TWICE = {
    "resolved.micro_batch_size": "deepspeed.train_micro_batch_size_per_gpu",
    "resolved.accumulation_steps": "deepspeed.gradient_accumulation_steps",
    "resolved.global_batch_size": "deepspeed.train_batch_size",
    "resolved.stage": "deepspeed.zero_optimization.stage",
}


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Every value that differs, in lines of 78 columns where there is a space to break them at.

    Both are JSON objects. First "key.path: old -> new" for those that both have, in the order of
    the keys; then what only one of them has, a paragraph a section, "section, no longer: …" or
    "section, new: …".
    """
    found = {path: values for path, *values in _differing("", old, new)}
    both: list[str] = []
    alone: dict[str, list[str]] = {}
    for path, (before, after) in found.items():
        section, _, key = path.rpartition(".")
        if before is _ABSENT:
            alone.setdefault(f"{section}, new", []).append(f"{key} {json.dumps(after)}")
        elif after is _ABSENT:
            alone.setdefault(f"{section}, no longer", []).append(f"{key} {json.dumps(before)}")
        elif _TWICE.get(path) not in found:
            both.append(f"{path}: {json.dumps(before)} -> {json.dumps(after)}")
    told = [f"{title.removeprefix(', ')}: {', '.join(values)}" for title, values in alone.items()]
    return [line for text in both + told for line in _wrapped(text)]


def _differing(path: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys((*old, *new)):
            below = f"{path}.{key}" if path else str(key)
            yield from _differing(below, old.get(key, _ABSENT), new.get(key, _ABSENT))
    elif old != new or isinstance(old, bool) != isinstance(new, bool):
        yield path, old, new


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
