"""Frozen pydantic models, and their validation errors in the words of this package."""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Strict, ValidationError

from ds_llama.config.problems import Problem, did_you_mean


def _whole(value: Any) -> Any:
    """JSON has one number type: 5e8 and 1000.0 are whole numbers to whoever typed them."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


Whole = Annotated[int, Strict(), BeforeValidator(_whole)]
Real = Annotated[float, Strict()]
"""A finite float, or an int; never a string or a bool."""


class Frozen(BaseModel):
    """Strict types, no unknown key, no mutation, no NaN; derived numbers are properties."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )


def problems_of(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[Problem]:
    """One Problem per pydantic error, each with the dotted key, the value, and what to do."""
    found = [_problem(dict(item), model, prefix) for item in error.errors(include_url=False)]
    unique: dict[tuple[str, str], Problem] = {}
    for problem in found:  # a union reports one error per member, all for the same key
        unique.setdefault((problem.key, problem.code), problem)
    return list(unique.values())


def _problem(item: dict[str, Any], model: type[BaseModel], prefix: str) -> Problem:
    location: tuple[str | int, ...] = item["loc"]
    kind, value = item["type"], item["input"]
    owner, path = walk(model, location, keep_last=kind == "extra_forbidden")
    key = ".".join([*([prefix] if prefix else []), *path])
    if kind == "extra_forbidden":
        name = path[-1]
        known = owner.model_fields if owner else ()
        return Problem(
            "unknown-key", "error", key, f"unknown key {name!r}", did_you_mean(name, known)
        )
    if kind == "missing":
        return Problem(
            "missing-key", "error", key, f"{path[-1]!r} is missing", f"give {path[-1]!r}"
        )
    code = "wrong-type" if "type" in kind or "parsing" in kind else "wrong-value"
    message = item["msg"][0].lower() + item["msg"][1:].replace("tuple", "list")
    return Problem(code, "error", key, f"{shown(value)}: {message}", _remedy(item))


def shown(value: Any) -> str:
    """A value as JSON writers know it, cut to a length that fits a line."""
    text = {True: "true", False: "false", None: "null"}.get(value) if _is_word(value) else None
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e16
    text = text or repr(int(value) if whole else value)
    return text if len(text) <= 80 else text[:77] + "…"


def _is_word(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _remedy(item: dict[str, Any]) -> str:
    context = item.get("ctx", {})
    if "remedy" in context:
        return str(context["remedy"])
    bounds = {"gt": "greater than", "ge": "at least", "lt": "less than", "le": "at most"}
    said = [f"{words} {context[name]}" for name, words in bounds.items() if name in context]
    if said:
        return f"write a value {' and '.join(said)}"
    if "expected" in context:
        return f"write one of {context['expected']}"
    kinds = {
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "string": "a string",
        "list": "a list",
        "tuple": "a list",
        "dict": "an object",
        "model": "an object",
        "finite": "a finite number",
    }
    name = item["type"].split("_")[0]
    return f"write {kinds.get(name, 'a value that fits')}"


def walk(
    model: type[BaseModel], location: Sequence[str | int], keep_last: bool = False
) -> tuple[type[BaseModel] | None, list[str]]:
    """The model that owns the last key of a pydantic location, and the location as JSON keys.

    pydantic puts the names of union members into the location; those are no keys and are dropped.
    """
    owner: type[BaseModel] | None = model
    here, path = [model], list[str]()
    for index, part in enumerate(location):
        owners = [member for member in here if part in member.model_fields]
        if owners and isinstance(part, str):
            owner = owners[0]
            path.append(part)
            here = list(models_in(owner.model_fields[part].annotation))
        elif isinstance(part, int):
            path.append(str(part))
        elif keep_last and index == len(location) - 1:
            path.append(part)
            owner = here[0] if here else None
        else:
            here = [member for member in here if member.__name__ == part] or here
    return owner, path


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every pydantic model inside an annotation such as `A | list[B] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, Annotated, list, tuple, dict):
        for member in get_args(annotation):
            yield from models_in(member)
