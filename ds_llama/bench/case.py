"""A benchmark case: a JSON that names axes, and the cells that are every combination of them.

    {
      "sweep": {"model": "tiny", "stage": [1, 2, 3], "offload": ["none", "optimizer"],
                "precision": "bf16", "sequence_length": [256, 1024], "world_size": 2},
      "cells": [{"stage": 3, "offload": "all"}],
      "steps": 10, "repeats": 3, "reference": {"stage": 1, "offload": "none"}
    }

Every key of `sweep` is a value or a list of values; `cells` are combinations to add, each laid over
the first value of every axis. `run` is laid under each cell's run JSON. No torch here.
"""

from __future__ import annotations

import difflib
import fnmatch
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError

from ds_llama.config.base import Frozen, Real, Whole, problems_of
from ds_llama.config.files import read_object
from ds_llama.config.problems import at, raise_errors
from ds_llama.config.sizes import raw_preset
from ds_llama.errors import CallError, ConfigError

Size = Annotated[Whole, Field(ge=1)]
Stage = Annotated[Whole, Field(ge=0, le=3)]
Precision = Literal["fp32", "bf16", "fp16"]
Beside = Literal["counts", "parts"]
Offload = Literal["none", "optimizer", "parameters", "all", "nvme", "nvme-all"]
Model = str | dict[str, Any]
T = TypeVar("T")
Several = Annotated[list[T], Field(min_length=1)]
OURS = "ds_llama"


class Axes(Frozen):
    """What a cell is: one value of each. As a sweep, each may be a list of values.

    model: a preset's name, or a run's `model` section. offload: what is on the host, or on NVMe
    (`nvme`: the optimizer's state; `nvme-all`: the weights too). program: `ds_llama`, or a file
    beside the case that trains the same otherwise (benchmarks/peers).
    """

    program: str | Several[str] = OURS
    model: Model | Several[Model]
    stage: Stage | Several[Stage] = 2
    offload: Offload | Several[Offload] = "none"
    precision: Precision | Several[Precision] = "bf16"
    recompute: bool | Several[bool] = False
    compile: bool | Several[bool] = False
    micro_batch_size: Size | Several[Size] = 1
    accumulation: Size | Several[Size] = 1
    sequence_length: Size | Several[Size] = 512
    world_size: Size | Several[Size] = 1


AXES = tuple(Axes.model_fields)


@dataclass(frozen=True)
class Cell:
    """One point of the sweep. `key` names its row: equal for equal cells of equal cases."""

    program: str
    model: str | dict[str, Any]
    stage: int
    offload: str
    precision: str
    recompute: bool
    compile: bool
    micro_batch_size: int
    accumulation: int
    sequence_length: int
    world_size: int
    model_name: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        """The cell in words, without what is usual: "zero3+all bf16 tiny 4 x 512 on 2"."""
        program = self.program.rsplit("/", 1)[-1].replace(".py", "")
        words = [] if self.program == OURS else [program]
        words += [self.strategy, self.precision, self.model_name]
        words += [word for word in ("recompute", "compile") if getattr(self, word)]
        steps = f" x {self.accumulation}" if self.accumulation > 1 else ""
        words.append(f"{self.micro_batch_size} x {self.sequence_length}{steps}")
        return " ".join([*words, f"on {self.world_size}"])

    @property
    def strategy(self) -> str:
        """Stage and offload: "zero3+all"."""
        return f"zero{self.stage}" + ("" if self.offload == "none" else f"+{self.offload}")

    @property
    def key(self) -> str:
        """Everything that makes the cell this one, in 12 hexadecimal digits."""
        axes = asdict(self)
        del axes["model_name"]
        return digest(axes)

    @property
    def section(self) -> dict[str, Any]:
        """The run's `model` section."""
        return {"preset": self.model} if isinstance(self.model, str) else dict(self.model)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "name": self.name, "strategy": self.strategy}


class Case(Frozen):
    """A whole benchmark. `timeout_s` is that of one cell's launch.

    models: names for `model` sections, which `sweep` and `cells` may use like presets.
    reference: the axes of the cell that others are compared with, the first cell without it.
    run: laid under each cell's run JSON; sections that are an axis's (bf16, offload_param, …) under
    the cells that have them.
    warmup_steps: 3 where the case does not say, 5 where any of its cells offloads: equally many for
    all, so that losses are those of the same steps.
    measure: what is measured beside speed, both where the case does not say. counts: live bytes,
    traffic and FLOPs. parts: the parts of a step. Each is null in the rows of a case without it,
    whose launches take that much less time.
    device_memory, host_memory: where they are not to be asked of the machine; cells beyond them are
    not run. nvme_path: where NVMe offload goes, the benchmark's own folder without it.
    """

    description: str = ""
    sweep: Axes
    models: dict[str, dict[str, Any]] = Field(default_factory=dict)
    cells: list[dict[str, Any]] = Field(default_factory=list)
    reference: dict[str, Any] = Field(default_factory=dict)
    run: dict[str, Any] = Field(default_factory=dict)
    steps: Annotated[Whole, Field(ge=1)] = 10
    warmup_steps: Annotated[Whole, Field(ge=0)] | None = None
    repeats: Annotated[Whole, Field(ge=1)] = 2
    measure: list[Beside] = Field(default_factory=lambda: ["counts", "parts"])
    timeout_s: Annotated[Real, Field(gt=0)] = 600.0
    device_memory: str | None = None
    host_memory: str | None = None
    nvme_path: str | None = None

    @functools.cached_property
    def expanded(self) -> list[Cell]:
        """Every cell, in the order of the sweep, those of `cells` after it; none twice."""
        first, extra = next(_combinations(self.sweep)), list[dict[str, Any]]()
        for keys in self.cells:
            extra += _combinations(Axes.model_validate({**first, **keys}))
        found = [self._cell(values) for values in [*_combinations(self.sweep), *extra]]
        return list({cell.key: cell for cell in found}.values())

    @property
    def warmup(self) -> int:
        """Steps of a launch that are neither counted nor measured."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return 5 if any(cell.offload != "none" for cell in self.expanded) else 3

    def _cell(self, values: dict[str, Any]) -> Cell:
        model = values["model"]
        if not isinstance(model, str):
            return Cell(**values, model_name=_shape(model))
        return Cell(**{**values, "model": self.models.get(model, model)}, model_name=model)


def read_case(path: Path) -> Case:
    """The case in a file, checked. Raises CallError for no JSON, ConfigErrors for its content."""
    return parse_case(read_object(path), str(path))


def parse_case(content: Mapping[str, Any], label: str) -> Case:
    """`read_case` for what has been read; `label` is what messages call it."""
    try:
        case = Case.model_validate(content)
        cells = case.expanded
    except ValidationError as error:
        prefix = "" if error.title == Case.__name__ else "cells"
        owner = Axes if prefix else Case
        raise_errors([p.to_error(label) for p in problems_of(error, owner, prefix)])
        raise
    if not any(matches(cell, case.reference) for cell in cells):
        raise ConfigError(
            f"no cell is the reference {json.dumps(case.reference)}",
            where=at(label, "reference"),
            remedy="name axes of one of the cells, or leave it out for the first",
        )
    for name in dict.fromkeys(cell.model for cell in cells if isinstance(cell.model, str)):
        raw_preset(name, where=at(label, "sweep.model"))
    return case


def select(cells: Sequence[Cell], patterns: Sequence[str]) -> list[Cell]:
    """The cells that any of the shell patterns names; all of them for no pattern.

    A pattern is held against whole names. One that no whole name is like may be anywhere in them:
    "zero3*" is this package's own cells where there are any, "fsdp2" those of a peer. Raises
    CallError for one that no cell's name has in it.
    """
    keys = {cell.key for pattern in patterns for cell in _named(cells, pattern)}
    return [cell for cell in cells if not patterns or cell.key in keys]


def _named(cells: Sequence[Cell], pattern: str) -> list[Cell]:
    for each in (pattern, f"*{pattern}*"):
        found = [c for c in cells if c.name == pattern or fnmatch.fnmatchcase(c.name, each)]
        if found:
            return found
    names = [cell.name for cell in cells]
    near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
    raise CallError(
        f"no cell's name is like {pattern!r} or has it in it",
        where="--only",
        remedy=f"of the {len(names)} cells these are near: {', '.join(map(repr, near))}",
    )


def digest(content: Any) -> str:
    """12 hexadecimal digits of what JSON says of it."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _combinations(axes: Axes) -> Iterator[dict[str, Any]]:
    lists = [value if isinstance(value, list) else [value] for _, value in axes]
    for values in product(*lists):
        yield dict(zip(AXES, values, strict=True))


def _shape(model: Mapping[str, Any]) -> str:
    """What an inline model is called: "h512-l8-v32000"."""
    keys = {**raw_preset(model["preset"], where="model")} if "preset" in model else {}
    keys |= model
    shown = {"h": "hidden_size", "l": "num_hidden_layers", "v": "vocab_size"}
    parts = [f"{letter}{keys[name]}" for letter, name in shown.items() if name in keys]
    return "-".join(parts) or str(next(iter(model.values()), "model"))


def matches(cell: Any, wanted: Mapping[str, Any]) -> bool:
    """Whether a cell, or a row's, has these values of axes; a model by its name or as it is."""
    named = {"model": (cell.model, cell.model_name)}
    return all(
        value in named.get(axis, (getattr(cell, axis, None),)) for axis, value in wanted.items()
    )
