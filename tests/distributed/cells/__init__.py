"""Cells: functions of a folder that run on every rank of a world and assert; self-registering."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from pathlib import Path

Cell = Callable[[Path], None]
WORLDS = (1, 2, 4)


def cells_of(world: int, patterns: Sequence[str] = ()) -> dict[str, Cell]:
    """Cells of every module here at this world size, by name; those with a pattern in it if any."""
    found: dict[str, Cell] = {}
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda m: m.name):
        for name, (worlds, cell) in importlib.import_module(
            f"{__name__}.{module.name}"
        ).CELLS.items():
            if world in worlds:
                found[f"{module.name}.{name}"] = cell
    if patterns:
        return {name: c for name, c in found.items() if any(p in name for p in patterns)}
    return found
