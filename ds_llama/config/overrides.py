"""`key.path=value` from the command line, laid over the JSON of a run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from ds_llama.config.base import models_in
from ds_llama.config.deepspeed import lookup
from ds_llama.config.keys import Section
from ds_llama.config.model import LlamaConfig
from ds_llama.config.problems import did_you_mean
from ds_llama.config.rope import RopeParameters
from ds_llama.config.run import MODEL_KEYS, Run
from ds_llama.errors import CallError

WHERE = "command line"


@dataclass(frozen=True)
class Override:
    """One `path=value`; `value` is what JSON says it is, else the text itself."""

    path: tuple[str, ...]
    value: Any

    @property
    def key(self) -> str:
        return ".".join(self.path)


def parse(text: str) -> Override:
    """Split at the first `=`. CallError when there is none or a path element is empty."""
    name, equals, value = text.partition("=")
    path = tuple(part.strip() for part in name.split("."))
    if not equals or not all(path):
        raise CallError(
            f"{text!r} is not an override",
            where=WHERE,
            remedy="write key.path=value, for instance train.steps=100",
        )
    return Override(path, _value(value))


def _value(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_not_json)
    except (ValueError, RecursionError):
        return text


def _not_json(name: str) -> Any:
    raise ValueError(name)


def check_path(override: Override) -> None:
    """CallError with the nearest name when the run tree has no such key."""
    model: list[type[BaseModel]] = [Run]
    for index, name in enumerate(override.path):
        rest = override.path[index:]
        if index == 1 and override.path[0] == "deepspeed":
            return _check_deepspeed(override)
        if index == 1 and override.path[0] == "model":
            return _check_model(override, rest)
        if name.isdecimal():
            continue  # the entry of a list; whether there is one is seen when it is set
        owner = next((member for member in model if name in member.model_fields), None)
        if owner is None:
            known = [field for member in model for field in member.model_fields]
            raise _unknown(override, index, known)
        model = list(models_in(owner.model_fields[name].annotation))
    return None


def _check_deepspeed(override: Override) -> None:
    names = override.path[1:]
    for index in range(len(names)):
        if names[index].isdecimal() or lookup(names[: index + 1]) is not None:
            continue
        section = lookup(names[:index])
        known = list(section.keys) if isinstance(section, Section) else []
        raise _unknown(override, index + 1, known)


def _check_model(override: Override, rest: Sequence[str]) -> None:
    names = list(rest)
    known = set(MODEL_KEYS)
    offset = 1
    if names[0] == "config" and len(names) > 1:
        names, known, offset = names[1:], set(LlamaConfig.model_fields), 2
    if names[0] not in known:
        raise _unknown(override, offset, known)
    if names[0] in ("rope_parameters", "rope_scaling") and len(names) > 1:
        fields = {*RopeParameters.model_fields, "type"}
        if names[1] not in fields:
            raise _unknown(override, offset + 1, fields)
    elif len(names) > 1 and not names[1].isdecimal():
        raise _unknown(override, offset + 1, [])


def _unknown(override: Override, index: int, known: Any) -> CallError:
    name = override.path[index]
    parent = ".".join(override.path[:index])
    if not list(known):
        return CallError(
            f"{parent!r} holds a value, not a section with {name!r} in it",
            where=f"{WHERE}: {override.key}",
            remedy=f"write {parent}=VALUE",
        )
    return CallError(
        f"unknown key {name!r}" + (f" in {parent!r}" if parent else ""),
        where=f"{WHERE}: {override.key}",
        remedy=did_you_mean(name, known),
    )


def apply(tree: dict[str, Any], override: Override, read_file: Callable[[str], Any]) -> None:
    """Set one value in `tree`, making sections that are absent or null on the way.

    `read_file(text)` turns a `deepspeed` that names a file into its content.
    """
    here: Any = tree
    for index, name in enumerate(override.path[:-1]):
        inner = _child(here, name, override)
        if index == 0 and name == "deepspeed" and isinstance(inner, str):
            inner = read_file(inner)
        if inner is None:
            inner = {}
        if not isinstance(inner, (dict, list)):
            parent = ".".join(override.path[: index + 1])
            raise CallError(
                f"{parent!r} is {inner!r} and has no {override.path[index + 1]!r} in it",
                where=f"{WHERE}: {override.key}",
                remedy=f"write {parent}=VALUE with the whole of it as JSON",
            )
        _set(here, name, inner, override)
        here = inner
    _child(here, override.path[-1], override)
    _set(here, override.path[-1], override.value, override)


def _child(here: Any, name: str, override: Override) -> Any:
    if isinstance(here, dict):
        return here.get(name)
    if not re.fullmatch(r"[0-9]{1,9}", name) or int(name) >= len(here):
        raise CallError(
            f"the list has {len(here)} entries, and none is called {name!r}",
            where=f"{WHERE}: {override.key}",
            remedy=f"count from 0 to {len(here) - 1}" if here else "write the whole list",
        )
    return here[int(name)]


def _set(here: Any, name: str, value: Any, override: Override) -> None:
    if isinstance(here, list):
        here[int(name)] = value
    elif name.isdecimal():
        raise CallError(
            f"there is no list to take entry {name} of",
            where=f"{WHERE}: {override.key}",
            remedy="write the whole list, for instance optimizer.betas=[0.9,0.95]",
        )
    else:
        here[name] = value
