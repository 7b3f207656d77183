"""`ds-llama selftest`: every stage and offload against a plain torch loop, on this machine."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ds_llama.selftest.cells import Cell
    from ds_llama.selftest.outcome import Outcome
    from ds_llama.selftest.report import Report


class Sabotage(str, Enum):
    """Words of `--sabotage`."""

    gradient = "gradient"
    rotary = "rotary"
    data = "data"
    all = "all"


BARE = {"--sabotage": "all"}


def command(
    nproc: Annotated[
        int | None,
        typer.Option(min=1, help="Processes; by default one for every device, one on a CPU."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Cells with this shell pattern in their name, such as 'bf16*stage3'; repeatable.",
        ),
    ] = None,
    sabotage: Annotated[
        Sabotage | None,
        typer.Option(
            help="Break this on the last rank, or all three without a word: every cell must see it."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    rank_folder: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> int:
    """Train a tiny model under every stage, offload and precision beside a plain torch loop.

    Prints the differences of losses, gradient norms, clipping and fp32 parameters with their
    limits; exit code 1 if one is beyond. What this machine cannot run is said and is no failure.
    """
    from ds_llama.selftest.cells import select

    if rank_folder is not None:
        return _run_rank(rank_folder)
    cells = select(only or [])
    with tempfile.TemporaryDirectory(prefix="ds-llama-selftest-") as folder:
        code, report = _launch(cells, nproc or _default_nproc(), sabotage, Path(folder))
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        from ds_llama.cli.selftest_table import show

        show(report)
    return code or int(not report.passed)


def _launch(
    cells: Sequence[Cell], nproc: int, sabotage: Sabotage | None, folder: Path
) -> tuple[int, Report]:
    """Run the cells in one launch; its exit code and all rows, those of what cannot run too."""
    from ds_llama.launcher.run import launch
    from ds_llama.selftest.outcome import NOT_RUN, Outcome
    from ds_llama.selftest.report import Report
    from ds_llama.selftest.sabotage import SABOTAGES

    lacking = _lacking_ops(cells)
    rows = {name: Outcome(NOT_RUN, reason=reason) for name, reason in lacking.items()}
    plan = {
        "cells": [cell.name for cell in cells if cell.name not in lacking],
        "sabotage": sabotage.value if sabotage else None,
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    code = launch(["selftest", "--rank-folder", str(folder)], nproc=nproc)
    rows |= _read_rows(folder / "rows.jsonl")
    unknown = Outcome(NOT_RUN, reason="the launch ended before it did")
    about = folder / "about.json"
    return code, Report(
        [(cell, rows.get(cell.name, unknown)) for cell in cells],
        json.loads(about.read_text()) if about.exists() else {"world_size": nproc},
        SABOTAGES[sabotage.value].what if sabotage else None,
    )


def _lacking_ops(cells: Sequence[Cell]) -> dict[str, str]:
    """Compile what the cells need; names of the cells whose op this machine lacks, with why."""
    from ds_llama.errors import MachineError
    from ds_llama.launcher import ops

    needed = {cell.name: ops.needed(cell.deepspeed()) for cell in cells}
    lacking: dict[str, str] = {}
    for op in dict.fromkeys(op for names in needed.values() for op in names):
        try:
            ops.build([op])
        except MachineError as error:
            lacking[op] = f"{error.what} ({error.where})"
    return {
        name: next(lacking[op] for op in names if op in lacking)
        for name, names in needed.items()
        if any(op in lacking for op in names)
    }


def _read_rows(path: Path) -> dict[str, Outcome]:
    from ds_llama.selftest.outcome import Outcome

    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return {row["cell"]: Outcome.from_dict(row) for row in rows}


def _default_nproc() -> int:
    from ds_llama.launcher.environment import count_devices, has_device

    return (count_devices() or 1) if has_device() else 1


def _run_rank(folder: Path) -> int:
    """One rank of the launch. Ops say on stdout, from C++, that they were loaded: not to users."""
    from ds_llama.cli.ticker import Ticker
    from ds_llama.selftest.rank import run_rank

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    run_rank(folder, Ticker())
    return 0
