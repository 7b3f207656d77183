"""Cells: functions of a folder that run on every rank of a world and assert; self-registering."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path

Cell = Callable[[Path], None]
WORLDS = (1, 2, 4)


def cells_of(world: int) -> dict[str, Cell]:
    """Every cell of every module here that runs at this world size, by name."""
    found: dict[str, Cell] = {}
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda m: m.name):
        for name, (worlds, cell) in importlib.import_module(
            f"{__name__}.{module.name}"
        ).CELLS.items():
            if world in worlds:
                found[f"{module.name}.{name}"] = cell
    return found
