"""What a cell trains: this package's own way, or a peer's from a file.

A peer is named "FILE" or "FILE:WAY", and FILE has a function

    def open_program(resolved: Resolved, options: dict[str, Any], way: str) -> Program

that every rank calls once it has joined the world. `resolved` is the run as it would train here;
`options` are the cell's. Weights, data, optimizer and precision are to be the run's.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from ds_llama.bench.case import OURS
from ds_llama.config.resolve import Resolved
from ds_llama.errors import CallError
from ds_llama.model.traits import traits_of
from ds_llama.zero import construct, register
from ds_llama.zero import engine as engines
from ds_llama.zero.step import Batch, take_step


class Program(Protocol):
    """Something that trains."""

    def step(self, window: Sequence[Batch]) -> tuple[float, float | None]:
        """One update from a rank's micro-batches; the global batch's loss, and the gradient's norm.

        Returns when all of it is done, on every rank. Parts are marked with `accounting.phase`.
        """
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


class _Ours:
    def __init__(self, resolved: Resolved) -> None:
        model = construct.build(resolved)
        traits = traits_of(model)
        self._engine = register.initialize(model, resolved, resolved.deepspeed, traits)

    def step(self, window: Sequence[Batch]) -> tuple[float, float | None]:
        result = take_step(self._engine, window)
        assert result is not None
        return result.loss, result.grad_norm

    def close(self) -> None:
        engines.destroy(self._engine)


def open_program(name: str, resolved: Resolved, options: dict[str, Any]) -> Program:
    """The program of that name; collective. Raises CallError for a file that is none."""
    if name == OURS:
        return _Ours(resolved)
    file, way = split(name)
    path = Path(file)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.exists():
        raise _no_program(path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise CallError(
            f"needs {error.name}, which is not installed",
            where=str(path),
            remedy="install it as the file says, or leave out its cells by --only",
        ) from error
    found = getattr(module, "open_program", None)
    if found is None:
        raise _no_program(path)
    program: Program = found(resolved, options, way)
    return program


def split(name: str) -> tuple[str, str]:
    """The file and the way of "FILE:WAY"."""
    file, found, way = name.partition(".py:")
    return (file + ".py", way) if found else (name, "")


def _no_program(path: Path) -> CallError:
    return CallError(
        "is no program: a Python file with a function `open_program`",
        where=str(path),
        remedy=f"name one as benchmarks/peers has them, or {OURS!r}",
    )
