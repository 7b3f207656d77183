"""The vocabulary in which the DeepSpeed JSON's schema is written: a Section holds Keys."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Union

from ds_llama.config.base import shown

KINDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a string",
    "strings": "a list of strings",
    "numbers": "a list of numbers",
    "list": "a list",
    "object": "an object",
    "any": "anything",
}


_LARGEST = sys.maxsize


@dataclass(frozen=True)
class Key:
    """One value. `kind` is one of KINDS, or several joined by `|`.

    `stages`: the ZeRO stages at which DeepSpeed reads it, None for all. `auto`: DeepSpeed itself
    gives "auto" a meaning here. `same_as`: another name of this key, which is the one to write.
    `gone`: what to do about a key that is kept for old files only.
    """

    kind: str
    default: Any = None
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: tuple[Any, ...] = ()
    null: bool = False
    auto: bool = False
    stages: frozenset[int] | None = None
    same_as: str | None = None
    gone: str = ""

    def complaint(self, value: Any) -> tuple[str, str] | None:
        """(what is wrong, what to write), or None for a value that fits."""
        if value is None and (self.null or self.default is None):
            return None
        if value == "auto" and self.auto:
            return None
        if not any(_fits(value, kind) for kind in self.kind.split("|")):
            wanted = " or ".join(KINDS[kind] for kind in self.kind.split("|"))
            return f"is {shown(value)}, not {wanted}", f"write {wanted}"
        if self.choices and _folded(value) not in {_folded(choice) for choice in self.choices}:
            wanted = ", ".join(shown(choice) for choice in self.choices)
            return f"is {shown(value)}, which it cannot be", f"write one of {wanted}"
        return self._out_of_range(value)

    def _out_of_range(self, value: Any) -> tuple[str, str] | None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        bounds = (
            ("at least", self.low, operator.ge),
            ("greater than", self.above, operator.gt),
            ("at most", _LARGEST if self.high is None else self.high, operator.le),
        )
        known = [(words, bound, holds) for words, bound, holds in bounds if bound is not None]
        if all(holds(value, bound) for _, bound, holds in known):
            return None
        said = [f"{words} {bound:g}" for words, bound, _ in known]
        return f"is {shown(value)}, out of range", f"write a number {' and '.join(said)}"


@dataclass(frozen=True)
class Section:
    """An object. `free` ones may hold keys that are not listed (another library's parameters)."""

    keys: Mapping[str, Union[Key, Section]] = field(default_factory=dict)  # noqa: UP007
    free: bool = False
    null: bool = False
    stages: frozenset[int] | None = None
    gone: str = ""

    def defaults(self) -> dict[str, Any]:
        """Every plain key with its default; other names and keys for old files left out."""
        return {
            name: key.default
            for name, key in self.keys.items()
            if isinstance(key, Key) and not key.same_as and not key.gone
        }

    @cached_property
    def homes(self) -> Mapping[str, list[str]]:
        """name -> dotted paths of the sections in here that have a key of that name."""
        found: dict[str, list[str]] = {}
        for name, entry in self.keys.items():
            if current(entry):
                found.setdefault(name, []).append("")
            if isinstance(entry, Section) and not entry.gone:
                for inner, paths in entry.homes.items():
                    below = [f"{name}.{path}".rstrip(".") for path in paths]
                    found.setdefault(inner, []).extend(below)
        return found

    def leaves(self, prefix: str = "") -> Iterator[tuple[str, Key]]:
        """(dotted name, Key) of everything inside."""
        for name, key in self.keys.items():
            path = f"{prefix}{name}"
            if isinstance(key, Section):
                yield from key.leaves(f"{path}.")
            else:
                yield path, key


def current(entry: Key | Section) -> bool:
    """Whether a name is the one to write, not an old or a second one."""
    return not entry.gone and not (isinstance(entry, Key) and entry.same_as)


def _fits(value: Any, kind: str) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "int":  # 5e8 is how people write it, and DeepSpeed takes it
        return number and (isinstance(value, int) or value.is_integer())
    if kind == "float":
        return number and (isinstance(value, int) or math.isfinite(value))
    if kind == "str":
        return isinstance(value, str)
    if kind in ("list", "strings", "numbers"):
        inner = {"strings": "str", "numbers": "float", "list": "any"}[kind]
        return isinstance(value, list) and all(_fits(item, inner) for item in value)
    return isinstance(value, dict) if kind == "object" else True


def _folded(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def flag(default: bool = False, **more: Any) -> Key:
    """true or false."""
    return Key("bool", default, **more)


def whole(default: int | None, low: float | None = None, **more: Any) -> Key:
    """A whole number."""
    return Key("int", default, low=low, **more)


def real(default: float | None, low: float | None = None, **more: Any) -> Key:
    """A number."""
    return Key("float", default, low=low, **more)


def text(default: str | None = None, *choices: str, **more: Any) -> Key:
    """A string, one of `choices` if there are any (DeepSpeed compares without case)."""
    return Key("str", default, choices=choices, **more)
